"""The papers' problems: tasks against formulas written out, splits that share no video or scene, what is read."""

import math
import sys

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("timm")

from sklearn.metrics import average_precision_score, f1_score
from torch import nn
from torch.nn import functional
from torch.utils.data import ConcatDataset

from equipoise.bench.problems import ProblemError, load_problem, with_options
from equipoise.bench.problems._dense import DeeplySupervised, DepthTask, SegmentationTask
from equipoise.bench.problems.data import NYUDMT, AffectNet, AffWild2, DamagedDataError, NYUDepthPairs, NYUv2
from equipoise.bench.problems.data._samples import (
    write_affectnet,
    write_affwild2,
    write_emotic,
    write_nyu_depth_pairs,
    write_nyud_mt,
    write_nyuv2,
)
from equipoise.bench.problems.papers._base import halve, hold_out, spread
from equipoise.bench.problems.papers._tasks import (
    AP,
    F1,
    MEAN_AP,
    MEAN_F1,
    Dimensions,
    Expression,
    MultiLabel,
    ValenceArousal,
)

NAMES = (
    "celeba",
    "affwild2",
    "affectnet",
    "emotic",
    "emotic-26",
    "nyudv2-mtan",
    "nyudv2-mtinet",
    "nyuv2-amtl",
    "voc-nyu",
)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def measured(task, *batches):
    metrics = task.metrics()
    for predictions, batch in batches:
        task.update(metrics, {task.name: predictions}, batch)
    return {name: value.item() for name, value in metrics.compute().items()}


def test_multi_label_leaves_out_missing_labels():
    task = MultiLabel("categories", 3, [MEAN_AP, MEAN_F1])
    logits = random(40, 3)
    labels = torch.randint(-1, 2, (40, 3), generator=torch.Generator().manual_seed(1))
    known = labels != -1
    expected = -(labels * functional.logsigmoid(logits) + (1 - labels) * functional.logsigmoid(-logits))[known].mean()
    torch.testing.assert_close(task.loss({"categories": logits}, {"categories": labels}), expected)
    values = measured(task, (logits[:25], {"categories": labels[:25]}), (logits[25:], {"categories": labels[25:]}))
    columns = [(labels[known[:, k], k].numpy(), logits[known[:, k], k].numpy()) for k in range(3)]
    assert values["mAP"] == pytest.approx(sum(average_precision_score(*column) for column in columns) / 3)
    assert values["mF1"] == pytest.approx(sum(f1_score(truth, scores > 0) for truth, scores in columns) / 3)
    assert task.accuracy(values) == values["mAP"]
    assert task.loss({"categories": logits}, {"categories": torch.full_like(labels, -1)}) is None


def test_a_single_label_may_be_called_otherwise_in_the_batch():
    task = MultiLabel("Doubt or Confusion", 1, [AP], key="Doubt/Confusion")
    logits, labels = torch.tensor([[2.0], [-1.0], [3.0]]), torch.tensor([1, 0, -1])
    loss = task.loss({"Doubt or Confusion": logits}, {"Doubt/Confusion": labels})
    assert loss.item() == pytest.approx((math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2)
    assert measured(task, (logits, {"Doubt/Confusion": labels})) == {"AP": 1.0}
    assert measured(MultiLabel("a", 1, [F1]), (logits, {"a": torch.tensor([1, 1, 1])})) == {"F1": pytest.approx(0.8)}


def test_expression_is_measured_by_macro_f1():
    task = Expression(3)
    logits, labels = random(30, 3), torch.randint(-1, 3, (30,), generator=torch.Generator().manual_seed(2))
    known = labels != -1
    expected = f1_score(labels[known].numpy(), logits[known].argmax(1).numpy(), average="macro")
    assert measured(task, (logits, {"expression": labels}))["F1"] == pytest.approx(expected)


def test_the_loss_of_valence_and_arousal_is_one_minus_concordance():
    task = ValenceArousal()
    found, labels = random(12, 2).requires_grad_(), random(12, 2, seed=1)
    labels[3] = torch.nan
    kept = [row for row in range(12) if row != 3]
    expected = 0.0
    for column in range(2):
        x, y = found[kept, column].detach().double(), labels[kept, column].double()
        covariance = ((x - x.mean()) * (y - y.mean())).mean()
        spread_x, spread_y = ((v - v.mean()).square().mean() for v in (x, y))
        expected += (1 - 2 * covariance / (spread_x + spread_y + (x.mean() - y.mean()) ** 2)).item() / 2
    loss = task.loss({"valence_arousal": found}, {"valence_arousal": labels})
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert found.grad.isfinite().all()
    assert (found.grad[3] == 0).all()
    values = measured(task, (found.detach(), {"valence_arousal": labels}))
    assert values["CCC"] == pytest.approx(1 - expected, abs=1e-5)
    assert task.accuracy({"CCC": -0.5}) == 0


def test_the_concordance_of_equal_labels_stays_finite():
    found = torch.zeros(2, 2, requires_grad=True)
    loss = ValenceArousal().loss({"valence_arousal": found}, {"valence_arousal": torch.zeros(2, 2)})
    loss.backward()
    assert loss.item() == 1
    assert found.grad.isfinite().all()
    assert ValenceArousal().loss({"valence_arousal": found}, {"valence_arousal": torch.full((2, 2), torch.nan)}) is None


def test_dimensions_have_an_absolute_error():
    task = Dimensions()
    labels = torch.tensor([[1.0, 5.0, torch.nan], [torch.nan, 2.0, 10.0]])
    found = torch.tensor([[2.0, 5.0, 9.0], [0.0, 4.0, 9.0]])
    assert task.loss({"dimensions": found}, {"dimensions": labels}).item() == pytest.approx(1.0)
    values = measured(task, (found, {"dimensions": labels}))
    assert values == {"MAE": pytest.approx(1.0), "MSE": pytest.approx(1.5)}
    assert task.accuracy(values) == pytest.approx(8 / 9)
    assert task.loss({"dimensions": found}, {"dimensions": torch.full((2, 3), torch.nan)}) is None


def test_initial_predictions_are_supervised_by_the_same_loss():
    plain = DepthTask()
    task = DeeplySupervised(plain)
    labels = 1 + random(2, 1, 16, 32).abs()
    labels[0, 0, :3] = torch.nan
    batch = {"input": torch.zeros(2, 3, 16, 32), "depth": labels}
    final = random(2, 1, 16, 32, seed=1)
    coarse = random(2, 1, 4, 8, seed=2)
    upsampled = functional.interpolate(coarse, (16, 32), mode="bilinear")
    loss = task.loss({"depth": final, "depth@4": coarse}, batch)
    known = ~labels.isnan()
    expected = (final - labels)[known].abs().mean() + (upsampled - labels)[known].abs().mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(task.loss({"depth": final}, batch), plain.loss({"depth": final}, batch))
    assert task.loss({"depth": final}, batch | {"depth": torch.full_like(labels, torch.nan)}) is None
    assert measured(task, (final, batch)) == measured(plain, (final, batch))


def test_label_smoothing_gives_a_share_to_every_class():
    logits, labels = random(2, 5, 4, 6), torch.randint(-1, 5, (2, 4, 6), generator=torch.Generator().manual_seed(0))
    loss = SegmentationTask(5, label_smoothing=0.1).loss({"segmentation": logits}, {"segmentation": labels})
    surprise = -logits.log_softmax(1)
    known = labels != -1
    right = surprise.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    torch.testing.assert_close(loss, (0.9 * right + 0.1 * surprise.mean(1))[known].mean())


@pytest.mark.parametrize("name", NAMES)
def test_problems_can_be_listed_without_data(name):
    problem = load_problem(name)
    assert problem.name == name
    with pytest.raises(ProblemError, match=rf"{name} needs its data: .*{name}\?data=DIR"):
        problem.data()


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "equipoise.bench.problems.papers.celeba", raising=False)
    monkeypatch.setitem(sys.modules, "equipoise.bench.models", None)
    with pytest.raises(ProblemError, match=r"equipoise\.bench\.models.*pip install 'equipoise\[vision\]'"):
        load_problem("celeba")


def test_whole_videos_are_held_out(tmp_path):
    write_affwild2(tmp_path)
    reader = AffWild2(tmp_path, "train")
    rest, chosen = hold_out(reader, 0.1)
    videos = reader.groups
    assert sorted(rest + chosen) == list(range(len(reader)))
    assert rest
    assert chosen
    assert not {videos[index] for index in rest} & {videos[index] for index in chosen}
    assert set(videos) == {"1-30-1280x720", "24"}  # both people of a video belong together
    assert hold_out(AffWild2(tmp_path, "train"), 0.1) == (rest, chosen)


def test_the_held_out_share_is_met_by_groups_of_any_size():
    class Grouped:
        def __init__(self, sizes):
            self.groups = [group for group, size in enumerate(sizes) for _ in range(size)]

    for sizes in ([1] * 1000, [7, 1, 3] * 100, [40] * 20):
        rest, chosen = hold_out(Grouped(sizes), 0.1)
        assert len(chosen) == pytest.approx(0.1 * sum(sizes), abs=max(sizes))
        assert len(rest) + len(chosen) == sum(sizes)
    rest, chosen = hold_out(Grouped([5, 95]), 0.5)
    assert sorted((len(rest), len(chosen))) == [5, 95]
    with pytest.raises(ProblemError, match="single video or scene"):
        hold_out(Grouped([10]), 0.1)


def test_every_reader_of_a_mixture_gives_of_its_own(tmp_path):
    write_nyu_depth_pairs(tmp_path / "a", images=(6, 2))
    write_nyu_depth_pairs(tmp_path / "b", images=(4, 2))
    parts = [NYUDepthPairs(tmp_path / part, "train") for part in "ab"]
    rest, chosen = hold_out(ConcatDataset(parts), 0.2)
    assert sorted(rest + chosen) == list(range(10))
    for start, part in ((0, parts[0]), (6, parts[1])):
        scenes = part.groups
        assert len(set(scenes)) == 2
        held = {scenes[index - start] for index in chosen if start <= index < start + len(part)}
        kept = {scenes[index - start] for index in rest if start <= index < start + len(part)}
        assert len(held) == len(kept) == 1
        assert held != kept


def test_neighbours_among_indoor_pictures_belong_together(tmp_path):
    write_nyud_mt(tmp_path, images=(170, 1), size=(8, 8))
    groups = NYUDMT(tmp_path, "train").groups
    assert groups == sorted(groups)
    assert set(groups) == set(range(80))
    assert {groups.count(group) for group in groups} == {2, 3}


def test_samples_of_a_split_are_spread_over_it():
    class Numbers(list):
        pass

    assert list(spread(Numbers(range(10)), 4)) == [0, 2, 5, 7]
    assert list(spread(Numbers(range(3)), 4)) == [0, 1, 2]
    assert halve(Numbers(range(5))) == ([0, 2, 4], [1, 3])


def test_official_splits_are_kept_and_validation_is_not_augmented(tmp_path):
    write_affectnet(tmp_path, images=(40, 6))
    problem = load_problem(with_options("affectnet", data=str(tmp_path), loading=0))
    data = problem.data()
    assert (len(data.train), len(data.validation), len(data.test)) == (38, 2, 6)
    assert data.train[0]["input"].shape == (3, 224, 224)
    first, second = (torch.stack([data.validation[0]["input"] for _ in range(8)]) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first[0], first[7])
    seen = {data.train[0]["input"].numpy().tobytes() for _ in range(20)}
    assert len(seen) == 2  # mirrored or not
    quick = problem.training(quick=True)
    assert (quick.epochs, quick.batch_size) == (1, problem.training().batch_size)


def test_the_emotic_network_sees_the_image_and_the_person(tmp_path):
    write_emotic(tmp_path)
    problem = load_problem(with_options("emotic", data=str(tmp_path), smoke=True))
    batch = next(iter(problem.loader(problem.data().validation, 2, None)))

    class Seen(nn.Module):
        def forward(self, images):
            return images

    images = problem.predict(Seen(), batch)
    assert images.shape == (2, 2, 3, 32, 32)
    assert torch.equal(images[:, 0], batch["input"]["image"])
    assert torch.equal(images[:, 1], batch["input"]["person"])
    assert not torch.equal(images[:, 0], images[:, 1])


def test_places_weights_in_the_data_folder_are_taken(tmp_path, monkeypatch):
    from equipoise.bench.problems.papers import emotic

    asked = {}
    monkeypatch.setattr(emotic, "EmoticNetwork", lambda *arguments, **options: asked.update(options))
    problem = load_problem(with_options("emotic", data=str(tmp_path)))
    problem.model()
    assert asked == {"context_weights": None}
    (tmp_path / "resnet18_places365.pth.tar").write_bytes(b"")
    problem.model()
    assert asked == {"context_weights": tmp_path / "resnet18_places365.pth.tar"}
    load_problem(with_options("emotic", data=str(tmp_path), smoke=True)).model()
    assert asked == {"context_weights": None}


def test_broken_places_weights_are_told_by_the_files_name(tmp_path, monkeypatch):
    from equipoise.bench.models import emotic

    create = emotic.create_backbone
    monkeypatch.setattr(emotic, "create_backbone", lambda name, pretrained, **options: create(name, False, **options))
    (tmp_path / "resnet18_places365.pth.tar").write_bytes(b"broken")
    with pytest.raises(ProblemError, match=r"^emotic: .*resnet18_places365\.pth\.tar' cannot be read"):
        load_problem(with_options("emotic", data=str(tmp_path))).model()


def test_pretrained_weights_that_cannot_be_had_are_told(monkeypatch):
    import timm

    asked = []

    def create_model(name, pretrained, **options):
        asked.append((name, pretrained))
        raise FileNotFoundError("no network.\nand more")

    monkeypatch.setattr(timm, "create_model", create_model)
    for name in NAMES:
        with pytest.raises(ProblemError, match=rf"{name}: the pretrained weights cannot be had \(no network\.\)"):
            load_problem(name).model()
    assert all(pretrained for _, pretrained in asked)
    assert len(asked) == len(NAMES)


def test_nyudv2_is_read_in_both_forms(tmp_path):
    write_nyud_mt(tmp_path / "archive", images=(6, 2), size=(24, 32))
    write_nyuv2(tmp_path / "file", images=(6, 2), size=(24, 32))
    for folder, reader in (("archive", NYUDMT), ("file", NYUv2)):
        problem = load_problem(with_options("nyudv2-mtan", data=str(tmp_path / folder), loading=0))
        data = problem.data()
        assert isinstance(data.test, reader)
        assert len(data.train) + len(data.validation) == 6
        sample = data.test[0]
        assert sample["input"].shape == (3, 480, 640)
        assert sample["segmentation"].max() < 40
    with pytest.raises(ProblemError, match=r"neither gt_sets nor nyu_depth_v2_labeled.mat[\s\S]*gt_sets/train.txt"):
        load_problem(with_options("nyudv2-mtan", data=str(tmp_path))).data()


def test_damaged_files_are_told_or_skipped(tmp_path):
    write_affectnet(tmp_path, images=(40, 6))
    (tmp_path / "Manually_Annotated_Images" / "1" / "train0.jpg").rename(tmp_path / "elsewhere.jpg")
    skipping = load_problem(with_options("affectnet", data=str(tmp_path), on_damaged="skip", loading=0)).data()
    assert len(skipping.train) + len(skipping.validation) == 39
    table = tmp_path / "training.csv"
    table.write_text(table.read_text() + "a line that is none\n")
    with pytest.raises(ProblemError, match=r"training.csv, line 42"):
        load_problem(with_options("affectnet", data=str(tmp_path))).data()


def test_data_are_read_by_processes_of_their_own(tmp_path):
    write_affectnet(tmp_path, images=(12, 4))
    problem = load_problem(with_options("affectnet", data=str(tmp_path), loading=1))
    data = problem.data()
    order = torch.Generator().manual_seed(0)
    batches = list(problem.loader(data.train, 4, order))
    assert [len(batch["input"]) for batch in batches] == [4, 4]
    again = list(problem.loader(data.train, 4, torch.Generator().manual_seed(0)))
    assert all(torch.equal(one["input"], other["input"]) for one, other in zip(batches, again, strict=True))
    assert sum(len(batch["input"]) for batch in problem.loader(data.test, 3, None)) == 4


@pytest.mark.parametrize("loading", [0, 1])
def test_damage_is_told_by_the_files_name_whichever_process_reads_it(loading, tmp_path):
    write_affectnet(tmp_path, images=(12, 4))
    problem = load_problem(with_options("affectnet", data=str(tmp_path), loading=loading))
    data = problem.data()
    path = next((tmp_path / "Manually_Annotated_Images").rglob("validation0.jpg"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DamagedDataError, match=r"^AffectNet: .*validation0\.jpg .*--on-damaged skip") as raised:
        list(problem.loader(data.test, 2, None))
    assert str(path) in str(raised.value).splitlines()[0]


def test_processes_that_read_fit_the_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for cores, expected in ((2, 2), (64, 4)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        assert load_problem("affectnet").loading == expected
    assert load_problem("affectnet?loading=8").loading == 8
    assert load_problem("affectnet?smoke=true").loading == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load_problem("affectnet").loading == 0


def test_training_files_are_looked_at_once(tmp_path, monkeypatch):
    write_affectnet(tmp_path, images=(40, 6))
    seen = []
    read = AffectNet._read
    monkeypatch.setattr(AffectNet, "_read", lambda self, index: seen.append(self) or read(self, index))
    data = load_problem(with_options("affectnet", data=str(tmp_path), on_damaged="skip")).data()
    assert len(seen) == 46
    assert len(data.train) + len(data.validation) == 40
