"""Text metrics: values computed by hand, and nothing where there is nothing to compute."""

import sys

import pytest

from hf_dumper.badcases import compare_texts
from hf_dumper.errors import ConfigError

CAT = "the cat sat on the mat", "the cat sat on a mat"


def row(golden, candidate, **options):
    return compare_texts([(golden, candidate)], **options).rows[0]


def test_equal_texts_have_the_best_of_everything():
    text = "a b c d e"
    best = {"edit_similarity": 1.0, "rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0}
    assert row(text, text) == best | {"exact": True, "edit_distance": 0, "bleu": pytest.approx(100)}


def test_edit_distance_of_kitten_and_sitting():
    found = row("kitten", "sitting")
    assert (found["exact"], found["edit_distance"]) == (False, 3)
    assert found["edit_similarity"] == pytest.approx(1 - 3 / 7)


def test_bleu_is_the_geometric_mean_of_four_precisions():
    expected = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert row(*CAT)["bleu"] == pytest.approx(expected)


def test_rouge_counts_words_pairs_and_the_common_sequence():
    found = row(*CAT)
    assert found["rouge1"] == pytest.approx(5 / 6)
    assert found["rouge2"] == pytest.approx(3 / 5)
    assert found["rougeL"] == pytest.approx(5 / 6)


def test_over_all_bleu_is_that_of_the_corpus_and_the_others_are_means():
    same = "a b c d"
    total = compare_texts([CAT, (same, same)]).total
    expected = 100 * (9 / 10 * 6 / 8 * 4 / 6 * 2 / 4) ** 0.25
    assert total["bleu"] == pytest.approx(expected)
    assert total["exact"] == 0.5
    assert total["rouge2"] == pytest.approx((3 / 5 + 1) / 2)
    assert total["edit_distance"] == 1.5
    assert total["edit_rate"] == pytest.approx(3 / (22 + 7))
    assert (total["rows"], total["not_computable"]) == (2, {})


def test_an_empty_candidate_is_as_far_as_can_be():
    found = row("a b c d", "")
    assert (found["bleu"], found["rouge1"], found["edit_similarity"]) == (0, 0, 0)


def test_an_empty_golden_text_has_no_bleu_and_no_rouge_and_is_counted():
    measured = compare_texts([("", "")])
    assert measured.rows[0]["exact"] is True
    assert measured.rows[0]["bleu"] is measured.rows[0]["rouge1"] is measured.total["bleu"] is None
    assert measured.total["not_computable"] == dict.fromkeys(
        ("bleu", "rouge1", "rouge2", "rougeL"), 1
    )


def test_rouge_of_letters_that_it_drops_is_not_computable():
    found = row("模型是好的", "模型是坏的")
    assert found["rouge1"] is None
    assert found["edit_distance"] == 1


def test_chinese_is_split_when_asked():
    found = row("模型是好的", "模型是坏的", tokenize="zh")
    assert found["rouge1"] == pytest.approx(4 / 5)
    assert found["rouge2"] == pytest.approx(2 / 4)


def test_an_unknown_tokenizer_is_an_error():
    with pytest.raises(ConfigError, match=r"no tokenizer 'klingon'\. Known: 13a"):
        compare_texts([CAT], tokenize="klingon")


def test_no_texts_are_an_error():
    with pytest.raises(ConfigError, match="no texts"):
        compare_texts([])


@pytest.mark.parametrize("library", ["rapidfuzz", "sacrebleu", "rouge_score"])
def test_without_a_library_it_says_what_to_install(monkeypatch, library):
    for name in [n for n in sys.modules if n.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=rf'{library}.*pip install "hf_dumper\[text\]"'):
        compare_texts([CAT])
