"""`lmflows`: the command line. The only place where an error becomes text and an exit status.

Exit status: 0 done, 1 a step or a server failed, 2 bad input (nothing was started), 3 the verdict
is not PASS, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from configs.errors import ConfigError, EndpointError, LmflowsError, VerdictFailed
from configs.reader import load, overrides_of
from configs.units import mb
from flows.cli import bench, compare, engines, harness, registry, report
from flows.cli.options import checked
from flows.cli.terminal import err, out, show_rows
from flows.run.lookup import engine_of, find, find_model, resolve, stores, variant_of

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Take a language model to a served, measured, reversible 4-bit endpoint on LMDeploy.",
)
config_app = typer.Typer(no_args_is_help=True, help="Pipeline configs.")
app.add_typer(config_app, name="config")
app.add_typer(engines.app, name="engines")
app.add_typer(registry.app, name="registry")
# the longest that a conversation waits for its model: hundreds of GB come from a slow disk
LOADING_SECONDS = 1800

ConfigPath = Annotated[Path, typer.Argument(help="a pipeline's YAML file")]
EndpointName = Annotated[
    str | None, typer.Argument(help="an endpoint's name; not needed if there is one")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="replace a value of the config, by dotted key path"
    ),
]


def main() -> None:
    """Console script. Ctrl-C anywhere ends with status 130, an expected error with its own status
    and no traceback."""
    try:
        status = app(standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except typer.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(130)
    except LmflowsError as error:
        err.print(f"[red]error[/] {type(error).__name__}: ", end="", highlight=False)
        err.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_status)
    except OSError as error:
        # a folder that may not be read, a full disk: the place is what the system names
        place = f" {error.filename}" if error.filename else ""
        err.print(
            f"error {type(error).__name__}:{place}: {error.strerror or error} -> check that it"
            " exists and may be read and written",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(LmflowsError.exit_status)
    except Exception as error:
        # a usage error of the CLI library
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            err.print(f"error: {error.format_message()}", markup=False, highlight=False)
            sys.exit(error.exit_code)
        raise


@app.command()
def run(
    config: ConfigPath,
    set_: Overrides = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="show Prefect's own log lines")
    ] = False,
) -> None:
    """Download, check, quantize, evaluate, judge, upload, promote and serve a model."""
    overrides = overrides_of(set_ or [])
    load(config, overrides)  # a bad config ends here, before Prefect is started
    from flows.run import environment, server_guard

    environment.prepare(quiet=not verbose)
    server_guard.watch_this_process()
    started = time.monotonic()
    with out.status("starting Prefect") if out.is_terminal else _nothing():
        from flows.cli.console import ConsoleDisplay, print_summary
        from flows.quantize_and_deploy import quantize_and_deploy
        from flows.run.summary import Summary
        from tasks.machine.sampler import HostMemoryMeter
        from tasks.serving import supervisor
    meter = HostMemoryMeter()
    meter.watch(supervisor.pid())
    meter.start()
    failed = None
    with _terminated_raises(KeyboardInterrupt()), ConsoleDisplay(out) as display:
        display.started_at = started
        try:
            with environment.unreachable_is_an_error():
                summary = quantize_and_deploy(str(config), overrides)
        except VerdictFailed as error:
            if not isinstance(error.summary, Summary):
                raise
            summary, failed = error.summary, error
        except KeyboardInterrupt:
            out.print("finished steps are kept, and the next run goes on after them")
            raise
        finally:
            meter.watch(supervisor.pid())
    meter.stop()
    print_summary(
        out,
        summary,
        seconds=time.monotonic() - started,
        peak_bytes=meter.peak_bytes,
        program=_program(),
    )
    if failed:
        raise failed


@app.command()
def chat(
    name: Annotated[
        str | None,
        typer.Argument(
            help="an endpoint's name; with --engine an artifact's digest or a model folder"
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="load a model with this engine just for the conversation: "
            "transformers, turbomind or pytorch"
        ),
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="with --engine: the KV cache, for example w4a16-kv8")
    ] = None,
    cache_max_entry_count: Annotated[
        float, typer.Option(help="with --engine: share of the GPU memory for the KV cache")
    ] = 0.4,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", help="with --engine and a folder: run its Python files"
        ),
    ] = False,
    url: Annotated[
        str | None, typer.Option(help="any OpenAI-compatible server, instead of an endpoint")
    ] = None,
    system: Annotated[str | None, typer.Option(help="a system message")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1)] = 512,
    timing: Annotated[
        bool, typer.Option("--timing", help="tell tokens and seconds of each answer")
    ] = False,
) -> None:
    """Talk to an endpoint, or to a model in an engine of its own.

    An empty line or Ctrl-D ends it, /new forgets the conversation, Ctrl-C cuts an answer short."""
    from flows.cli.chat import Manner, converse
    from tasks.serving import endpoints

    manner = Manner(system=system, temperature=temperature, max_tokens=max_tokens, timing=timing)
    if engine is None:
        converse(out, manner, endpoint=None if url else endpoints.get(name), url=url)
        return
    if name is None:
        raise ConfigError(
            "which model?", where="--engine", hint="name an artifact's digest or a model folder"
        )
    from tasks.checkpoints.files import read_config
    from tasks.machine.gpus import cuda_is_visible
    from tasks.serving.temporary import served

    folder, digest = find_model(name)
    kind = "w4a16" if "quantization_config" in read_config(folder) else "fp16"
    options = checked(
        engine_of,
        name=engine,
        cache_max_entry_count=cache_max_entry_count,
        # as the tutorial does; float32 runs out of memory
        dtype="float16" if cuda_is_visible() else "float32",
    )
    moving = err.status("loading")  # shows nothing where nothing can move
    moving.start()
    try:
        # KeyboardInterrupt would only cut an answer short
        with (
            _terminated_raises(SystemExit(130)),
            served(
                folder,
                options,
                variant_of(variant or kind, options),
                trust_remote_code=trust_remote_code or digest is not None,
                limit_s=LOADING_SECONDS,
                log=moving.update,
            ) as endpoint,
        ):
            moving.stop()
            converse(out, manner, endpoint=endpoint)
    finally:
        moving.stop()


@app.command()
def status(as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """List the endpoints on this machine, and whether they run."""
    from tasks.serving import endpoints, supervisor

    rows = []
    for endpoint in endpoints.list_all():
        state, pid = supervisor.state(endpoint)
        rows.append(
            {
                "name": endpoint.name,
                "state": state,
                "url": f"{endpoint.url}/v1",
                "model": endpoint.model_name,
                "engine": endpoint.engine.name,
                "artifact": endpoint.artifact.short,
                "pid": pid or "",
                "since": f"{endpoint.since:%Y-%m-%d %H:%M} UTC",
            }
        )
    show_rows(rows, as_json, "no endpoint is deployed")


@app.command()
def stop(
    name: EndpointName = None,
    every: Annotated[bool, typer.Option("--all", help="stop every endpoint")] = False,
) -> None:
    """Take an endpoint down and free its port."""
    from tasks.serving import endpoints, supervisor

    for endpoint in endpoints.list_all() if every else [endpoints.get(name)]:
        supervisor.stop(endpoint)
        for problem in endpoint.withdraw():
            err.print(
                f"a store believes that {endpoint.name} still runs, until `lmflows registry gc"
                f" --forget` says that it does not: {problem}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        endpoint.forget()
        out.print(f"stopped {endpoint.name}; port {endpoint.options.port} is free", highlight=False)


@app.command()
def logs(name: EndpointName = None, lines: Annotated[int, typer.Option("-n", min=1)] = 40) -> None:
    """Show the last lines of an endpoint's server log."""
    from tasks.serving import endpoints

    log = endpoints.get(name).folder / endpoints.LOG
    if not log.exists():
        raise EndpointError(
            "has not written anything yet",
            where=str(log),
            hint="`lmflows status` tells whether it runs",
        )
    out.print(
        "\n".join(log.read_text(errors="replace").splitlines()[-lines:]),
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def ls(as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """List the artifacts on this machine, oldest first, and the stages that point to them."""
    from artifacts.registry.refs import Registry

    stages: dict[str, list[str]] = {}
    for store in stores():
        for ref in Registry(store.objects).refs():
            if ref.current:
                stages.setdefault(ref.current.digest, []).append(f"{ref.model}/{ref.stage}")
    rows = []
    for digest in dict.fromkeys(digest for store in stores() for digest in store.digests()):
        try:
            manifest = find(digest).manifest(digest)
        except LmflowsError as error:
            err.print(str(error), markup=False, highlight=False, soft_wrap=True)
            continue
        rows.append(
            {
                "digest": digest if as_json else digest[:12],
                "kind": manifest.kind,
                "size": manifest.size if as_json else mb(manifest.size),
                "files": len(manifest.files),
                "uploaded": (
                    "yes"
                    if any(store.manifest_path(digest).exists() for store in stores()[1:])
                    else ""
                ),
                "stages": ", ".join(stages.get(digest, [])),
                "parents": ", ".join(f"{p.role} {p.digest[:12]}" for p in manifest.parents),
            }
        )
    show_rows(rows, as_json, "no artifacts yet")


@app.command()
def show(digest: Annotated[str, typer.Argument(help="a digest, or its first digits")]) -> None:
    """Show an artifact: its report if it is one, else its manifest."""
    from rich.markdown import Markdown

    from artifacts.records.report import MARKDOWN

    store, full = resolve(digest)
    artifact = store.open(full)
    if artifact.kind == "report":
        text = (artifact.path / MARKDOWN).read_text()
        out.print(Markdown(text) if out.is_terminal else text)
    else:
        out.print_json(store.manifest(full).model_dump_json())
        out.print(f"folder: {artifact.path}", highlight=False, soft_wrap=True)


@app.command()
def verify(digest: Annotated[str, typer.Argument(help="a digest, or its first digits")]) -> None:
    """Hash every file of an artifact, wherever it lies; status 1 if one is changed, missing or
    extra."""
    _, full = resolve(digest)
    bad = 0
    for store in stores():
        if store.manifest_path(full).exists():
            problems = store.verify(full)
            bad += len(problems)
            for problem in problems:
                out.print(
                    f"{store.root.name}: {problem}", markup=False, highlight=False, soft_wrap=True
                )
            if not problems:
                out.print(
                    f"{store.root.name}: {len(store.manifest(full).files)} files, all as in"
                    f" manifest {full}",
                    highlight=False,
                    soft_wrap=True,
                )
    if bad:
        raise typer.Exit(1)


app.command()(report.report)
app.command()(compare.compare)
app.command()(bench.bench)
app.command("bench-compare")(bench.bench_compare)
app.command()(harness.harness)


@app.command()
def ui(port: Annotated[int, typer.Option(min=1, max=65535)] = 4200) -> None:
    """Run the Prefect server and its UI over this machine's runs, until Ctrl-C."""
    from flows.run import environment

    environment.prepare()
    # the page asks the server that it came from: Prefect's own default is port 4200 of this
    # machine, whatever the port or tunnel
    os.environ.setdefault("PREFECT_SERVER_UI_API_URL", "/api")
    command = [
        sys.executable,
        "-m",
        "prefect",
        "server",
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    out.print(f"runs: http://127.0.0.1:{port}/runs", highlight=False)
    os.execv(command[0], command)


@config_app.command()
def schema() -> None:
    """Print the JSON schema of a pipeline config."""
    from configs.schema import Pipeline

    print(json.dumps(Pipeline.model_json_schema(), indent=2))


@config_app.command()
def check(config: ConfigPath, set_: Overrides = None) -> None:
    """Check a config, and that the files it names exist."""
    pipeline = load(config, overrides_of(set_ or []))
    out.print(f"{config}: a valid pipeline for {pipeline.name}", highlight=False, soft_wrap=True)


def _program() -> str:
    """What the reader has to type for this program where they are: its name if the shell finds it,
    else its path."""
    called, found = Path(sys.argv[0]).absolute(), shutil.which("lmflows")
    if called.name != "lmflows" or (found and called.samefile(found)):
        return "lmflows"
    here = Path.cwd()
    return shlex.quote(str(called.relative_to(here) if called.is_relative_to(here) else called))


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _terminated_raises(error: BaseException) -> Iterator[None]:
    """SIGTERM raises this, so that a step's or a server's processes are ended in order."""

    def end(_signal: int, _frame: FrameType | None) -> None:
        raise error

    before: Callable[..., Any] | int | None = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()
