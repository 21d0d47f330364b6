"""What the paper on Pychop claims, and the bars that this project sets itself."""

from shoestring.systems.card import Claim

QAT_STEPS = 150
SYSTEMS = 3
ONE_PICTURE = 0.01  # points of accuracy that one of 10,000 test pictures is worth


def _accuracy_claim(name: str, points: float, figure: str) -> Claim:
    return Claim(
        text=f"weights and activations of a classifier in {name}, rounded to nearest, lose almost nothing",
        figure=figure,
        setting="ResNet on MNIST, post-training; bar: Fashion-MNIST, 194 thousand weights, 10,000 pictures",
        metric=accuracy_metric(name, "nearest"),
        kind="quality",
        unit="%",
        better="higher",
        bar=-points,
        bar_on="difference",
    )


def accuracy_metric(name: str, mode: str) -> str:
    return f"accuracy, {name}, {mode}"


ACCURACY = {
    "half": _accuracy_claim("half", 0.1, "no figure for half"),
    "bf16": _accuracy_claim("bf16", 0.1, "no figure for bf16"),
    "e4m3": _accuracy_claim("e4m3", 0.5, "99.66 %"),
    "e5m2": _accuracy_claim("e5m2", 1.5, "99.60 %"),
}
LOST_UP = Claim(
    text="directed rounding does far more harm than rounding to nearest",
    figure="q43: 18.7 % up, 51 % down, 99.66 % nearest",
    setting="ResNet on MNIST; bar: points that the small net loses in e5m2 rounded up",
    metric="points lost, e5m2, up",
    kind="quality",
    unit="%",
    better="higher",
    bar=3.0,
    bar_on="value",
)
TIMES_LOST_UP = Claim(
    text="the same, as a multiple of what rounding to nearest loses",
    figure="81 points against about none",
    setting="as above",
    metric="points lost, e5m2, up against nearest",
    kind="quality",
    unit="%",
    better="higher",
    bar=3.0,
)
REGAINED = Claim(
    text="training through the rounding regains what post-training rounding lost",
    figure="no figure",
    setting=f"{QAT_STEPS} steps in e5m2 rounded up, straight-through",
    metric="share of the loss regained by rounded training",
    kind="quality",
    unit="",
    better="higher",
    bar=0.5,
    bar_on="value",
)
AHEAD = Claim(
    text="the gain is the rounding's, not that of training longer",
    figure="no figure",
    setting=f"against {QAT_STEPS} more steps in float32, then rounded",
    metric="accuracy, e5m2, up, after rounded training",
    kind="quality",
    unit="%",
    better="higher",
    bar=ONE_PICTURE,
    bar_on="difference",
)


def _time_claim(text: str, figure: str, metric: str, bar: float, paper_ratio: float | None = None) -> Claim:
    return Claim(
        text=text,
        figure=figure,
        setting="4096 x 4096 float32 to e4m3, to nearest even, CPU",
        metric=metric,
        kind="time",
        unit="s",
        better="lower",
        paper_ratio=paper_ratio,
        bar=bar,
    )


GFLOAT = _time_claim("rounding is fast", "qualitative", "time of rounding, beside gfloat", 1 / 100)
PYCHOP = _time_claim(
    "faster than the authors' NumPy code",
    "2.24 s, MATLAB chop 7.07 s (10,000 x 10,000 double)",
    "time of rounding, beside pychop",
    1 / 25,
)
COPY = _time_claim("bound by memory alone", "qualitative", "time of rounding, beside a copy", 1.5)
GPU = Claim(
    text="a GPU rounds much faster",
    figure="0.058 s on a GPU, 6.4 s on a CPU",
    setting="10,000 x 10,000 double; here the torch path beside a copy on the same GPU",
    metric="time of rounding on a GPU, beside a copy",
    kind="time",
    unit="s",
    better="lower",
    needs_gpu=True,
)


def _solver_claim(text: str, metric: str, bar: float) -> Claim:
    return Claim(
        text=text,
        figure="no figure",
        setting=f"200 x 200, log-spaced singular values, LU in half, the worst of {SYSTEMS} systems",
        metric=metric,
        kind="quality",
        unit="",
        better="lower",
        bar=bar,
    )


REFINED = _solver_claim(
    "GMRES refinement of an LU in half reaches the backward error of float64 at condition 1e4",
    "backward error, GMRES refinement at 1e4, beside float64",
    10.0,
)
AGAINST_HALF = _solver_claim(
    "the solution in half alone is far from it",
    "backward error, GMRES refinement at 1e4, beside half alone",
    1e-10,
)
PLAIN_WORKS = _solver_claim(
    "plain refinement works at condition 1e3",
    "backward error, plain refinement at 1e3, beside float64",
    10.0,
)
PLAIN_FAILS = _solver_claim(
    "plain refinement fails at condition 1e4, where GMRES refinement does not",
    "backward error, GMRES refinement at 1e4, beside plain refinement",
    1e-10,
)
