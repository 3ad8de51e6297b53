"""The table of results, and when there is no picture beside it."""

from trl_pafo.data.sources.arguments import DataArguments
from trl_pafo.metrics import fairness_summary
from trl_pafo.report.plain_words import plain_sentences
from trl_pafo.report.results import write_results


def test_a_run_whose_test_lacks_a_group_has_a_table_and_no_picture(tmp_path):
    user = [i // 2 for i in range(20)]
    summary = fairness_summary([1.0, 0.0, 1.0, 1.0] * 5, user, ["a"] * 20, num_resamples=50)
    for majority, minority in (("a", "absent"), ("a", "a")):
        results = {"majority": majority, "minority": minority, "reference": "pafo", "methods": {"pafo": summary}, "verdicts": {}}
        results["data"] = DataArguments().data_inputs()
        write_results(tmp_path, results)
        text = (tmp_path / "results.md").read_text()
        assert text.startswith("\n".join(plain_sentences(results)) + "\n\nData: styles")
        assert "| method | overall | a | worst" in text
    assert not list(tmp_path.glob("*.png"))
