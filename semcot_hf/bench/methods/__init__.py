"""The methods of the bench, one file each, and the training that they share."""
