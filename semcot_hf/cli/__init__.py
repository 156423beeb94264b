"""The `semcot` command."""
