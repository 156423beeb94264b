"""`semcot bench methods`: every method on the same host, questions, budget and checker."""

from .arguments import parse


def run(argv):
    """Run the bench and say where its report is."""
    from ..bench.run import BenchSettings, run_bench

    (settings,) = parse("semcot bench methods", (BenchSettings,), argv)
    report = run_bench(settings)
    for task in report["tasks"]:
        for goal in task["goal"]:
            print(f"{task['task']}: {'met' if goal['met'] else 'MISSED'}: {goal['condition']}")
    print(f"The report is {settings.output_dir}/report.md.")
