"""`xlstm train`: models of a series, a text, or sequences with labels, and the folders they are
kept in.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from typer import Argument, Option

from xlstm import plots
from xlstm.arrays import checks
from xlstm.arrays.backend import backend_of
from xlstm.arrays.namespace import Params
from xlstm.cli.console import (
    Report,
    description,
    err,
    exit_code,
    interrupted,
    out,
    tell,
    tell_of_ranks,
)
from xlstm.cli.launch import join
from xlstm.cli.options import (
    BackendOption,
    ByRole,
    ColumnOption,
    JsonOption,
    QuietOption,
    command,
    levels_of,
)
from xlstm.cli.predict import of_forecasts, of_labels, of_text
from xlstm.cli.sources import MODEL, SequenceTable, check_file, digest, held_out, read_text
from xlstm.data import writing
from xlstm.data.csv_file import Dialect
from xlstm.data.panels import Panel
from xlstm.data.series import bundled
from xlstm.estimators import Forecaster, SequenceClassifier, Settings, TextModel
from xlstm.estimators.evaluation import Score
from xlstm.estimators.forecaster import examples
from xlstm.plots import figures
from xlstm.training import Callback, Interrupted, ProgressBar, Terminated
from xlstm.training.folder import BEST, HISTORY, Folder

PICTURE = "forecast.png"
GRAPHS: dict[str, bool | str] = {"auto": "auto", "on": True, "off": False}
HORIZON = 12
SHORT = 20  # a series should be this many times as long as the default horizon


class CommandRun(Report):
    """The training of a model into a folder, and the lines printed about it.

    `xlstm train` without a kind keeps only the model. All others keep a run: checkpoints and the
    history.

    Parameters
    ----------
    context : typer.Context
    output : Path, optional
        The folder. ValueError if it holds a run or a model already, unless `overwrite` is true, or
        no run to resume.
    graph : {"auto", "on", "off"}
        Whether steps are captured in CUDA graphs.
    overwrite : bool
        Replace the run and the model in the folder: the checkpoints when training begins, and the
        model once the new one is complete.
    resume, as_json, quiet : optional
        Options of the command line; `quiet` has its effect by itself.
    ranks : int, optional
        If no launcher started ranks, the command runs on that many, and this process ends as they
        do. Only rank 0 writes and prints.
    """

    def __init__(
        self,
        context: typer.Context,
        output: Annotated[
            Path | None,
            Option("--output", "-o", help="Folder; by default xlstm-output, or xlstm-KIND."),
        ] = None,
        resume: Annotated[bool, Option("--resume", help="Continue the run in the folder.")] = False,
        overwrite: Annotated[
            bool, Option("--overwrite", help="Replace the model or the run in the folder.")
        ] = False,
        graph: Annotated[
            str, Option(help="Capture steps in CUDA graphs, on CuPy: auto, on or off.")
        ] = "auto",
        as_json: JsonOption = False,
        quiet: QuietOption = False,
        ranks: Annotated[
            int | None,
            Option(min=1, help="Processes that train together, each on its share of every batch."),
        ] = None,
    ) -> None:
        super().__init__(as_json)
        if resume and overwrite:
            raise ValueError(
                "train: --resume goes on with the run that --overwrite replaces, expected one of"
                " them"
            )
        self.start = time.perf_counter()
        self.group = join(ranks)
        self.leads = self.group.rank == 0
        self.graph = GRAPHS[checks.choice(GRAPHS)("train", "graph", graph)]
        self.resume = resume
        self.overwrite = overwrite
        self.begun = not overwrite  # whether the checkpoints in the folder are those of this run
        self.keeps = not context.command.hidden
        self.output = output or Path(f"xlstm-{context.info_name if self.keeps else 'output'}")
        self.file = self.output / MODEL
        self.saved: list[Path] = []
        self.trained: Any = None
        if self.leads:
            self._check_folder()

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints of the run in the folder."""
        return Folder(self.output, 1).checkpoints() if self.keeps else []

    def _check_folder(self) -> None:
        if self.output.exists():
            writing.check(self.file)
        if self.overwrite:
            return
        begun = bool(self.checkpoints)
        if self.resume and not begun:
            problem = "no run to resume; `xlstm train KIND` begins one without --resume"
        elif begun and not self.resume:
            problem = "a run already; --resume goes on with it, --overwrite replaces it"
        elif self.file.exists() and not begun:
            problem = "a model already; --overwrite replaces it"
        else:
            return
        raise ValueError(f"{self.output}: holds {problem}, and --output names another folder")

    def replace(self) -> None:
        """With `overwrite`, delete once the files of the old run in the folder, the newest
        checkpoint last, and leave the model. ValueError if another process goes on with that run.
        """
        if self.begun:
            return
        folder = Folder(self.output, 1)
        folder.begin()
        try:
            names = (self.output / name for name in (HISTORY, BEST))
            for path in (*names, *folder.checkpoints()):
                path.unlink(missing_ok=True)
        finally:
            folder.close()
        self.begun = True

    def fit(self, model: Any, *data: Any, file: Path, **saved: Any) -> Any:
        """Train an estimator on data of a file, and save it with options of `save`, even if a
        signal ends training.
        """
        bar = ProgressBar(Console(quiet=True) if out.quiet else err)
        model.set_params(graph=self.graph, callbacks=[bar, Beginning(self)])
        if self.keeps:
            model.set_params(checkpoints=self.output, resume=self.resume)
        elif self.leads:
            self.output.mkdir(parents=True, exist_ok=True)
        try:
            model.fit(*data, group=self.group if self.group.size > 1 else None)
        except (Interrupted, Terminated):
            if not (self.overwrite and self.file.exists()):  # that is the old one, and whole
                self._save(model, file, saved)  # the best so far
            raise
        self._save(model, file, saved)  # before anything else can go wrong
        tell_of_ranks(self.group)
        self.group.close()
        if not self.leads:
            raise typer.Exit
        self.trained = trained = vars(model).get("trained_")
        if isinstance(model, Forecaster):
            self.print(candidates(model))
        if trained is not None:
            best = f", best after epoch {trained.best_epoch}" if trained.validations else ""
            early = ", stopped early" if trained.stopped_early else ""
            skipped = f", {trained.skipped} steps left out" if trained.skipped else ""
            steps = f"{len(trained.losses)} batches in {trained.seconds:.1f} s"
            self.print(f"trained: {steps}{best}{early}{skipped}")
        return model

    def _save(self, model: Any, file: Path, options: dict[str, Any]) -> None:
        if not self.leads:
            return
        self.replace()  # nothing has called it if no network was trained
        # Without checkpoints of a network the folder does not exist yet.
        self.output.mkdir(parents=True, exist_ok=True)
        model.data_ = digest(file)
        model.save(self.file, **options)
        self.saved.append(self.file)

    def end(self, **values: Any) -> None:
        """Print where the model is, or as JSON the values and facts about the training."""
        self.print(f"model: {self.file}")
        seconds = time.perf_counter() - self.start
        unsaved = "" if self.trained is None else self.trained.unsaved
        self.finish(model=str(self.file), seconds=seconds, unsaved=unsaved, **values)

    @contextlib.contextmanager
    def accounted(self) -> Iterator[None]:
        """If training or a later part fails or is interrupted, say which files are saved: exit code
        1 if any.
        """
        try:
            yield
        except (Exception, KeyboardInterrupt, Terminated) as error:
            stopped = interrupted(error)
            if isinstance(error, BrokenPipeError) or not (stopped or self.saved):
                raise
            parts = [description(error), *(f"{path} is saved" for path in self.saved)]
            if stopped and self.begun and self.checkpoints:
                words = [word for word in sys.argv[1:] if word not in ("--resume", "--overwrite")]
                parts.append(f"go on with: {shlex.join(['xlstm', *words, '--resume'])}")
            elif not self.saved:
                parts.append("nothing was saved")
            tell("; ".join(parts))
            raise typer.Exit(exit_code(error) if stopped else 1) from None


@dataclass
class Beginning(Callback):
    """A callback that replaces the old run of a command's folder once training begins, after all
    checks.
    """

    run: CommandRun
    everywhere = False

    def begin(self, params: Params) -> None:
        self.run.replace()


@command(Settings)
def train_forecast(
    table: Annotated[
        Path | None, Argument(help="CSV or Parquet file; by default monthly sunspots.")
    ] = None,
    column: ColumnOption = None,
    horizon: Annotated[
        int | None, Option(help="Steps to forecast; by default 12, or fewer for a short series.")
    ] = None,
    window: Annotated[
        int | None, Option(help="Steps to look back; by default 48, or fewer for a short series.")
    ] = None,
    backend: BackendOption = "auto",
    dtype: Annotated[str, Option(help="Type of numbers: float32 or float64.")] = "float32",
    quantiles: Annotated[
        str | None, Option(help="Quantiles to learn: two or more levels, such as 0.05,0.5,0.95.")
    ] = None,
    holidays: Annotated[
        str | None, Option(help="Use the holidays of a country, such as DE, or a part, DE-BY.")
    ] = None,
    *,
    run: CommandRun,
    by_role: ByRole,
    dialect: Dialect,
    **settings: Any,
) -> None:
    """Fit a forecaster to a series, with a network if that helps, and compare it with simple
    methods.

    The first 60 % of the series are for training the network. The next 20 % decide when training stops and
    whether the network is used. The last 20 % are the test. Then everything but the network is
    fitted once more, to the whole series. `train forecast` also keeps checkpoints and a history.
    """
    file = table or bundled("sunspots")
    check_file("train", file)
    panel = Panel.from_file(file, by_role.roles(column), dialect)
    if horizon is None:
        horizon = max(1, min(HORIZON, *(len(series.values) // SHORT for series in panel.shown)))
    for name in ("linear_baseline", "season"):
        numbers = settings[name].split(",")
        if all(map(str.isdigit, numbers)):
            first, *more = map(int, numbers)
            settings[name] = [first, *more] if more else first
    if quantiles is not None:
        settings["quantiles"] = levels = levels_of("train", quantiles)
        if len(levels) < 2:
            raise ValueError(
                f"train: --quantiles is {quantiles}, expected two or more levels, which bound intervals"
            )
    if settings["candidates"] != "auto":
        settings["candidates"] = settings["candidates"].split(",")
    if settings["least"] is None and min(np.nanmin(values) for values in panel.values) >= 0:
        settings["least"] = 0.0  # values that were never below 0 will stay so
    home = backend_of(backend, dtype)
    # no --column: there may be another in its place
    settings |= by_role.roles().parameters() | {"holidays": holidays}
    model = Forecaster(horizon=horizon, window=window, backend=home, name=panel.title, **settings)
    with panel.named():
        examples(model, panel)  # raises if the series cannot be trained on
    narrow = "" if model.precision is None else f", training in {model.precision}"
    run.print(f"backend: {home}, {home.dtype}{narrow} ({home.reason})")
    run.print(f"series: {panel}")
    run.fit(model, panel, file=file)
    score, values = of_forecasts(run, model, panel)
    picture = run.output / PICTURE
    if figures.available():
        _picture(picture, model, panel, score)
        run.saved.append(picture)
        run.print(f"picture: {picture}")
    else:
        run.print("picture: none, matplotlib is not installed (pip install matplotlib)")
    run.end(
        window=model.window_,
        chosen=[*model.chosen_],
        candidate_errors=model.candidate_errors_,
        **values,
    )


def candidates(model: Forecaster) -> str:
    """Return in words the candidates of a forecaster, their errors, and those that it uses."""
    errors: dict[str, list[str]] = {"from rolling origins": [], "on the validation part": []}
    for name, error in model.candidate_errors_.items():
        validated = name in ("average", "network")
        data = "on the validation part" if validated else "from rolling origins"
        errors[data].append(f"{name} {error:.3g}")
    parts = "; ".join(f"{', '.join(names)} {data}" for data, names in errors.items() if names)
    methods = ", ".join(model.chosen_)
    return f"candidates: {parts} (repeating the last value has 1); chosen: {methods}"


def _picture(path: Path, model: Forecaster, panel: Panel, score: Score) -> None:
    """Draw forecasts of the first series and target: over the test part, and beyond the end if
    all covariates are known there.
    """
    fan = None
    ours = score.series == 0
    H = model.horizon
    if min(panel.rows_ahead.values(), default=H) >= H:
        quantiles = model.predict_quantiles(panel)[0].reshape(H, -1, len(model.quantiles))
        fan = plots.Fan(quantiles[:, 0], model.quantiles)
    forecasts = score.forecasts.reshape(len(ours), H, -1)[ours, :, 0]
    errors = {
        name: error.rmse.reshape(H, -1)[:, 0]
        for name, error in score.errors.items()
        if score.season or name != "seasonal"
    }
    plots.save(plots.forecast(panel.shown[0], score.at[ours], forecasts, fan, errors), path)


@command(TextModel)
def train_text(
    file: Annotated[Path, Argument(help="Text in UTF-8.")],
    sample: Annotated[int, Option(min=0, help="Tokens of the sample to show at the end.")] = 200,
    *,
    run: CommandRun,
    **settings: Any,
) -> None:
    """Train a language model on a text, and show the loss on its held-out end and a sample."""
    check_file("train", file)
    whole = read_text(file)
    model = run.fit(TextModel(**settings), whole, file=file)
    judged = {} if model.held_out_ is None else of_text(run, model, model.held_out_, "held out")
    text = model.generate(whole[:1], sample, seed=model.seed) if sample else ""
    if text:
        run.print(f"sample:\n{text}")
    run.end(steps=len(model.trained_.losses), **judged, sample=text)


@command(SequenceClassifier)
def train_classify(
    table: Annotated[Path, Argument(help="CSV or Parquet file.")],
    label: Annotated[str, Option(help="Column of labels.")],
    sequence: Annotated[
        str | None, Option(help="Column that names the sequence of a row, if a row is a step.")
    ] = None,
    columns: Annotated[
        str | None, Option(help="Columns of features, such as A,B,C; by default all others.")
    ] = None,
    test_fraction: Annotated[
        float, Option(min=0, max=0.9, help="Share of the sequences to hold out as a test.")
    ] = 0.2,
    *,
    run: CommandRun,
    dialect: Dialect,
    **settings: Any,
) -> None:
    """Train a classifier of sequences, and show its accuracy on sequences that were held out.

    With --sequence each row is a step of a sequence, in order of time. Without it each row is a
    sequence of numbers.
    """
    check_file("train", table)
    layout = SequenceTable.of(table, label, sequence, columns, dialect)
    sequences, _, labels = layout.read(table, dialect)
    rows, test = held_out(labels, test_fraction, settings["seed"])
    classifier = SequenceClassifier(**settings)
    model = run.fit(classifier, sequences[rows], labels[rows], file=table, note=asdict(layout))
    judged = of_labels(run, model, sequences[test], labels[test]) if len(test) else {}
    run.end(epochs=model.n_iter_, **judged)
