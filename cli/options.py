"""Options that several commands share, spelled and explained once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from m3score.cli.choices import Bits, Dtype, Engine, Format, Promise, Rule, Sufficiency
from m3score.common.limits import MAX_EMBEDDED_BYTES, MAX_FILE_BYTES

MODEL = "Model"
ROUTING = "Routing"
TABLES = "Tables"
OUTPUT = "Output"
DATA_SET = "Data sets and parquet files"
LIMITS = "Limits of one picture"
CLUSTER = "Cluster"

Paths = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PATHS",
        help='Images, folders (with all below), quoted patterns ("**/*.png"), tar shards '
        '("data-{000..099}.tar"), parquet files, URLs (s3://, https:// ...), or - for a list on stdin.',
        show_default=False,
    ),
]
DatasetOption = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        metavar="NAME",
        help="A data set of the datasets library: a hub id, or a folder (saved by it, or parquet files).",
        rich_help_panel=DATA_SET,
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        "--split",
        help="Which split of --dataset.",
        show_default="the only one",
        rich_help_panel=DATA_SET,
    ),
]
Root = Annotated[
    Path | None,
    typer.Option(
        "--root",
        metavar="FOLDER",
        help="Where relative paths of the table are looked for last, after the table's own folder and the "
        "working folder.",
        show_default=False,
    ),
]
ImageColumn = Annotated[
    str | None,
    typer.Option(
        "--image-column",
        help="Where the images are.",
        show_default="image, or the first that holds images",
        rich_help_panel=DATA_SET,
    ),
]
QuestionColumn = Annotated[
    str | None,
    typer.Option(
        "--question-column",
        help="Each image is asked what it says, a text or a list.",
        show_default="question, if there is one",
        rich_help_panel=DATA_SET,
    ),
]
AnswersColumn = Annotated[
    str | None,
    typer.Option(
        "--answers-column",
        help="The right answers to these questions.",
        show_default="answers or answer, if there is one",
        rich_help_panel=DATA_SET,
    ),
]
Streaming = Annotated[
    bool,
    typer.Option(
        "--streaming",
        help="Read a hub data set as it arrives; without, it is downloaded first.",
        rich_help_panel=DATA_SET,
    ),
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        envvar="M3SCORE_MODEL",
        metavar="NAME",
        help="A bundled model, a Hugging Face hub id such as mucai/llava-v1.5-7b-m3 or "
        "Qwen/Qwen2.5-VL-3B-Instruct, or a folder.",
        rich_help_panel=MODEL,
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=MODEL),
]
DtypeOption = Annotated[
    Dtype, typer.Option("--dtype", help="Number type of the weights.", rich_help_panel=MODEL)
]
Quantize = Annotated[
    Bits | None,
    typer.Option(
        "--quantize",
        help="Fewer bits per weight (CUDA only; needs m3score\\[quantize]).",
        rich_help_panel=MODEL,
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        "--revision", metavar="REV", help="Branch, tag or commit of a hub model.", rich_help_panel=MODEL
    ),
]
Rungs = Annotated[
    str | None,
    typer.Option(
        "--rungs",
        metavar="N,N,...",
        help="The ladder: budgets of visual tokens, for a model that is no M3 model.",
        show_default="those of the model's family",
        rich_help_panel=MODEL,
    ),
]
MaxNewTokens = Annotated[
    int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.", rich_help_panel=MODEL)
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE",
        help="Write the table here (.csv, .jsonl or .parquet) instead of csv to stdout.",
        rich_help_panel=OUTPUT,
    ),
]
FormatOption = Annotated[
    Format | None,
    typer.Option("--format", help="Table format, whatever the suffix of --out.", rich_help_panel=OUTPUT),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace files that exist already.", rich_help_panel=OUTPUT)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only errors on stderr.", rich_help_panel=OUTPUT)]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        show_default=False,
        help="Say more on stderr; -vv for debugging.",
        rich_help_panel=OUTPUT,
    ),
]
RuleOption = Annotated[
    Rule,
    typer.Option(
        "--rule",
        help="Tokens needed: the fewest that suffice together with every finer scale (stays), or the fewest "
        "that suffice at all (first, as in the M3 paper).",
    ),
]
SufficiencyOption = Annotated[
    Sufficiency,
    typer.Option(
        "--sufficiency",
        help="An answer suffices if it is correct, if it is consistent with the finest scale's, or (auto) "
        "correct where a reference answer is known and consistent elsewhere.",
    ),
]
Traces = Annotated[
    Path | None,
    typer.Option(
        "--traces",
        metavar="FILE",
        help="Also write every answer at every scale; m3score rescore reads it.",
        rich_help_panel=OUTPUT,
    ),
]
Report = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="Also write a page of the results (.html); needs --out. See m3score report.",
        rich_help_panel=OUTPUT,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        help="Images given to the model at once.",
        show_default="32 on a GPU, else 8",
        rich_help_panel=MODEL,
    ),
]
AskedOfAll = Annotated[
    list[str] | None,
    typer.Option("--question", metavar="TEXT", help="Ask this of every image. Repeatable."),
]
QuestionsFile = Annotated[
    Path | None,
    typer.Option(
        "--questions",
        metavar="FILE",
        help="csv or jsonl with the columns image and question, and maybe answers, options, metric: each "
        "image is asked its own. Images are matched by the end of their path; those without a row fail, "
        "unless --question says what to ask them.",
    ),
]
CoarseAnswers = Annotated[
    bool,
    typer.Option(
        "--answers/--no-answers",
        help="Whether coarser scales' answers are decoded where they differ from the finest scale's. "
        "Without: faster; they are empty in --traces then, and ground truths are not judged by.",
        rich_help_panel=MODEL,
    ),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Stop after so many images.")]
ProfileOption = Annotated[
    bool, typer.Option("--profile", help="Say at the end where the time went.", rich_help_panel=OUTPUT)
]
PredictorOption = Annotated[
    str,
    typer.Option(
        "--predictor",
        metavar="NAME",
        help="A bundled predictor, or a file that m3score calibrate wrote.",
        rich_help_panel=ROUTING,
    ),
]
MaxDrop = Annotated[
    float,
    typer.Option(
        "--max-drop",
        metavar="SHARE",
        help="At most this share of answers may get worse than at the finest scale (0.02 = 2 %).",
        rich_help_panel=ROUTING,
    ),
]
MeanTokens = Annotated[
    float | None,
    typer.Option(
        "--mean-tokens",
        metavar="T",
        help="A budget instead of a promise: so many visual tokens per grid on the average of images like "
        "those of the calibration, spent where they help most.",
        rich_help_panel=ROUTING,
    ),
]
Confidence = Annotated[
    float,
    typer.Option(
        "--confidence", metavar="SHARE", help="How sure that promise has to be.", rich_help_panel=ROUTING
    ),
]
Per = Annotated[
    Promise,
    typer.Option(
        "--per",
        help="What the share is of. image: one question about each image. question: all questions, so that "
        "images with many weigh more.",
        rich_help_panel=ROUTING,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Images at once.", show_default="one per CPU"),
]
EngineOption = Annotated[
    Engine,
    typer.Option(
        "--engine",
        help="local: this machine. ray: the machines of a Ray cluster (needs m3score\\[ray]).",
        rich_help_panel=CLUSTER,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        help="The cluster's head, or auto for the cluster that this machine belongs to.",
        show_default="RAY_ADDRESS, or a cluster of this machine alone",
        rich_help_panel=CLUSTER,
    ),
]
NumGpus = Annotated[
    float | None,
    typer.Option(
        "--num-gpus",
        min=0,
        metavar="N",
        help="GPUs for each worker; parts of one are fine, such as 0.5.",
        show_default="1 for a model, if the cluster has any",
        rich_help_panel=CLUSTER,
    ),
]
EngineWorkers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        metavar="N",
        help="With ray, how many load the model and score; else processes that open images.",
        show_default="as many as there is room for",
        rich_help_panel=CLUSTER,
    ),
]
Frames = Annotated[
    int | None,
    typer.Option(
        "--frames",
        min=1,
        metavar="N",
        help="Of videos: a grid of tokens for each of N frames.",
        show_default="six frames as one picture",
    ),
]
MaxPixels = Annotated[
    int,
    typer.Option(
        "--max-pixels",
        min=1,
        metavar="N",
        help="A larger picture is an error; more take more memory.",
        rich_help_panel=LIMITS,
    ),
]
MaxBytes = Annotated[
    int | None,
    typer.Option(
        "--max-bytes",
        min=1,
        metavar="N",
        help="A larger file, or image in a shard, a row or a URL, is an error.",
        show_default=f"{MAX_FILE_BYTES} for a file, {MAX_EMBEDDED_BYTES} for the others",
        rich_help_panel=LIMITS,
    ),
]
ImageTimeout = Annotated[
    float,
    typer.Option(
        "--image-timeout",
        metavar="SECONDS",
        help="A picture that takes longer to decode is an error.",
        rich_help_panel=LIMITS,
    ),
]
