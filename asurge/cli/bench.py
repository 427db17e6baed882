"""The command ``asurge bench latency | throughput | serve``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import orjson
from anyio import to_thread
from rich.console import Console
from tqdm import tqdm

from asurge.bench.metrics import parse_limits
from asurge.bench.workloads import WORKLOADS, Workload, named_workload
from asurge.cli.options import add_engine_options, engine_settings
from asurge.cli.starting import started
from asurge.errors import BenchmarkError, ConfigError

if TYPE_CHECKING:
    from asurge.bench.driver import Client
    from asurge.bench.measure import Measurement, Surroundings
    from asurge.engine import Engine

_DESCRIPTION = """\
Measure speed. Greedy requests of fixed lengths, with prompts of random token ids. See docs/benchmarks.md."""
_SERVER_VOCABULARY = 10_000


def add_to(commands: Any) -> None:  # argparse keeps this type private
    """Declare the command and its kinds."""
    parser = commands.add_parser("bench", help="measure speed", description=_DESCRIPTION)
    kinds = parser.add_subparsers(required=True, metavar="KIND")
    _add_latency(kinds)
    _add_throughput(kinds)
    _add_serve(kinds)


def _add_latency(kinds: Any) -> None:
    parser = kinds.add_parser("latency", help="one batch after another", description="Batches, one after another.")
    _add_lengths(parser)
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="requests at once (1)")
    parser.add_argument("--iterations", type=int, default=5, metavar="N", help="number of batches (5)")
    _add_engine(parser)
    parser.set_defaults(run=run_latency, whole=False)


def _add_throughput(kinds: Any) -> None:
    parser = kinds.add_parser("throughput", help="many requests", description="Many requests to an engine in process.")
    parser.add_argument("--whole", action="store_true", help="take only finished answers, as Engine.generate does")
    _add_workload(parser)
    _add_engine(parser)
    parser.set_defaults(run=run_throughput)


def _add_serve(kinds: Any) -> None:
    parser = kinds.add_parser(
        "serve", help="a server over HTTP", description="Load any OpenAI-compatible server with streamed completions."
    )
    parser.add_argument(
        "--base-url", default="http://127.0.0.1:8000", metavar="URL", help="address of the server, with or without /v1"
    )
    parser.add_argument(
        "--model", default=None, metavar="NAME", help="name of the model on the server; default: its first"
    )
    parser.add_argument("--api-key", default=None, metavar="KEY", help="the server's key, if it needs one")
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="SECONDS", help="longest time without data (600)"
    )
    parser.add_argument(
        "--vocab-size",
        type=int,
        default=_SERVER_VOCABULARY,
        metavar="N",
        help="random prompts use token ids below this",
    )
    parser.add_argument(
        "--request-rate",
        type=float,
        default=None,
        metavar="R",
        help="requests a second (Poisson); default: all at once",
    )
    _add_workload(parser)
    _add_common(parser)
    parser.set_defaults(run=run_serve)


def _add_lengths(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input-len", type=int, default=128, metavar="TOKENS", help="length of each prompt (128)")
    parser.add_argument("--output-len", type=int, default=128, metavar="TOKENS", help="length of each answer (128)")


def _add_workload(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workload", choices=WORKLOADS, default=None, help="a named workload instead of the next five options"
    )
    parser.add_argument("--num-prompts", type=int, default=64, metavar="N", help="number of requests (64)")
    _add_lengths(parser)
    parser.add_argument("--concurrency", type=int, default=None, metavar="N", help="requests at once; default: all")
    parser.add_argument(
        "--shared-prefix",
        type=int,
        default=0,
        metavar="TOKENS",
        help="tokens that all prompts share at their beginning (0)",
    )


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trace", type=Path, default=None, metavar="PATH", help="write a timeline of steps (.json, .png, .svg)"
    )
    parser.add_argument("--no-roofline", action="store_true", help="do not measure the memory's bandwidth")
    _add_common(parser)
    add_engine_options(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of prompts and arrivals (0)")
    parser.add_argument("--warmup", type=int, default=1, metavar="N", help="short rounds that do not count (1)")
    parser.add_argument(
        "--goodput",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME:MS",
        help="latency limits of good requests, such as ttft:500 tpot:50",
    )
    parser.add_argument("--json", type=Path, default=None, metavar="PATH", help="write all metrics to this file")
    parser.add_argument("--plot", type=Path, default=None, metavar="PATH", help="write a plot to this file (.png)")


def run_latency(given: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    workload = Workload(
        name="latency",
        requests=given.batch_size,
        rounds=given.iterations,
        input_len=given.input_len,
        output_len=given.output_len,
    )
    return _run(given, "latency", workload, _in_process)


def run_throughput(given: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    return _run(given, "throughput", _workload(given), _in_process)


def run_serve(given: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    if given.vocab_size < 1:
        raise ConfigError(f"vocab_size={given.vocab_size} must be at least 1")
    return _run(given, "serve", dataclasses.replace(_workload(given), rate=given.request_rate), _over_http)


def _workload(given: argparse.Namespace) -> Workload:
    if given.workload is not None:
        return named_workload(given.workload)
    return Workload(
        name="load",
        requests=given.num_prompts,
        input_len=given.input_len,
        output_len=given.output_len,
        concurrency=given.concurrency,
        shared_prefix=given.shared_prefix,
    )


def _run(given: argparse.Namespace, command: str, workload: Workload, how: Any) -> int:
    parse_limits(given.goodput)  # whatever can be refused is refused before anything is measured
    if given.json is not None and not given.json.absolute().parent.is_dir():
        raise BenchmarkError(f"{given.json} cannot be written: its folder does not exist")
    if given.plot is not None:
        from asurge.bench.plot import check_plot

        check_plot(given.plot)
    if getattr(given, "trace", None) is not None:
        from asurge.bench.trace import check_trace

        check_trace(given.trace)
    from asurge.bench.machine import load_average

    busy = load_average()
    measurement, around, described = anyio.run(how, given, workload)
    _show(given, measurement, around, {"command": f"bench {command}", "load_average_before": busy, **described})
    return 1 if measurement.metrics.failed else 0


async def _in_process(
    given: argparse.Namespace, workload: Workload
) -> tuple[Measurement, Surroundings | None, dict[str, Any]]:
    from asurge.bench.bandwidth import measure_bandwidth
    from asurge.bench.engine_client import EngineClient
    from asurge.bench.machine import count_compilations, describe_machine, peak_resident_bytes
    from asurge.bench.measure import Surroundings, check_fits
    from asurge.bench.roofline import read_footprint, roofline
    from asurge.models import resolve_checkpoint

    bandwidths = [] if given.no_roofline else [await to_thread.run_sync(measure_bandwidth)]
    settings = {**engine_settings(given), "strict_context": True}
    began_s = time.perf_counter()
    async with started(settings) as engine:
        start_s = time.perf_counter() - began_s
        check_fits(workload, engine.max_model_len)
        folder = await to_thread.run_sync(resolve_checkpoint, engine.config.model)
        footprint = read_footprint(folder, engine.config)
        with count_compilations() as compilations:
            client = EngineClient(engine, whole=given.whole)
            measurement = await _measured(given, client, workload, footprint.vocab_size, _traced(given, engine))
        most = engine.config.max_num_seqs
    if bandwidths:  # what a shared machine gives varies: measured before and after, and the better one counts
        bandwidths.append(await to_thread.run_sync(measure_bandwidth))
    tpot = measurement.metrics.tpot_ms
    roof = (
        roofline(
            footprint,
            workload,
            max_num_seqs=most,
            bandwidth=max(bandwidths),
            tpot_ms=None if tpot is None else tpot.p50,
        )
        if bandwidths
        else None
    )
    around = Surroundings(start_s, peak_resident_bytes(), len(compilations), roof)
    described = {"model": engine.name, "settings": _shown(engine), "whole": given.whole, "machine": describe_machine()}
    return measurement, around, described


async def _over_http(
    given: argparse.Namespace, workload: Workload
) -> tuple[Measurement, Surroundings | None, dict[str, Any]]:
    from asurge.bench.http_client import HttpClient
    from asurge.bench.machine import describe_machine

    async with HttpClient(given.base_url, given.model, api_key=given.api_key, timeout_s=given.timeout) as client:
        measurement = await _measured(given, client, workload, given.vocab_size)
        described = {"model": client.model, "base_url": given.base_url}
        return measurement, None, {**described, "machine": describe_machine(with_device=False)}


@contextmanager
def _traced(given: argparse.Namespace, engine: Engine) -> Iterator[None]:
    """Record a timeline of the steps run within, if one was requested."""
    if given.trace is None:
        yield
        return
    from asurge.bench.trace import StepTrace, write_trace

    trace = StepTrace()
    engine.observe_steps(trace)
    yield
    engine.observe_steps(None)
    write_trace(trace, given.trace)


async def _measured(
    given: argparse.Namespace,
    client: Client,
    workload: Workload,
    vocab_size: int,
    traced: AbstractContextManager[None] | None = None,
) -> Measurement:
    from asurge.bench.measure import measure, warm_up

    await warm_up(client, workload, vocab_size=vocab_size, rounds=given.warmup, seed=given.seed + 1)
    total, quiet = workload.requests * workload.rounds, not sys.stderr.isatty()
    with (
        traced or nullcontext(),
        tqdm(total=total, desc="Measuring", unit="req", disable=quiet or None, leave=False) as bar,
    ):
        return await measure(
            client,
            workload,
            vocab_size=vocab_size,
            seed=given.seed,
            limits_ms=parse_limits(given.goodput),
            on_done=lambda record: bar.update(),
        )


def _show(
    given: argparse.Namespace, measurement: Measurement, around: Surroundings | None, described: dict[str, Any]
) -> None:
    from asurge.bench.report import tables

    if given.json is not None:
        surroundings = {} if around is None else around.document()
        document = {**described, **measurement.document(), **surroundings}
        given.json.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")
    if given.plot is not None:
        from asurge.bench.plot import plot

        plot(measurement, given.plot)
    console = Console()
    for table in tables(measurement, around):
        console.print(table)


def _shown(engine: Engine) -> dict[str, Any]:
    return dataclasses.asdict(engine.config)
