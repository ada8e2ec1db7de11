"""The command line: the only package that knows methods, tasks and reports, and that nothing imports."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import typer

from harness.cli.compute import lm_eval, pretrain, run, sweep
from harness.cli.listing import list_
from harness.cli.show import claims, compare, pack, report, samples, table, unpack
from harness.errors import INTERRUPTED, BakeoffError

app = typer.Typer(
    name="bakeoff",
    help="Which post-training method should I use for my model and my task, and is the difference real?",
    epilog="Start with:  bakeoff run sweeps/quickstart.toml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (run, sweep, report, table, claims, pretrain, pack, unpack):
    app.command()(command)
app.command(name="list")(list_)
app.command(name="lm-eval")(lm_eval)
app.command()(compare)
app.command()(samples)


def main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell put it in the background
    code = 0
    try:
        code = app(standalone_mode=False) or 0
    except BakeoffError as error:
        fail(str(error), error.code)
    except typer.Abort:
        fail("interrupted", INTERRUPTED)
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # typer carries its own copy of click's exceptions
            print(error)
            raise SystemExit(0) from None
        if isinstance(message := getattr(error, "format_message", None), Callable):
            fail(str(message()), 2)
        raise
    raise SystemExit(code)


def fail(message: str, code: int) -> None:
    print(f"bakeoff: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)
