"""`lumos play`. Heavy imports wait until it runs."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType

from experiments.commands.options import Add, add_adapter_flag, add_import_flag
from experiments.play.address import LOOPBACK, PORT, listen, tell_where
from lumos_pl.errors import ConfigError


def add_commands(add: Add) -> None:
    parser = add("play", play, "a page in the browser to make clips with a model, step by step")
    about = "runs/EXP/NAME, a .ckpt, or a released folder (default: a small model of shapes)"
    parser.add_argument("source", nargs="?", metavar="RUN|CKPT", type=Path, help=about)
    parser.add_argument("--weights", choices=["model", "ema"], default="model", help="ema: the running average")
    add_adapter_flag(parser)
    parser.add_argument("--tokenizer", metavar="SOURCE", help="`embedded`, a .safetensors, its run, or Cosmos's folder")
    parser.add_argument("--text-tokenizer", metavar="FILE", help="a tokenizer.json")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, or auto (default)")
    host = f"listen on this address (default {LOOPBACK}: this machine alone)"
    parser.add_argument("--host", default=LOOPBACK, metavar="HOST", help=host)
    parser.add_argument("--port", type=int, default=PORT, metavar="N", help=f"default {PORT}; 0: any that is free")
    add_import_flag(parser)


def play(options: argparse.Namespace) -> int:
    """Run the command until Ctrl-C."""
    _need_extra()
    # Threads that wait for each other give their core away meanwhile: with other work on the machine a clip takes a
    # third of the time. Read when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with listen(options.host, options.port) as listening:
        tell_where(listening)  # before the model is loaded, which takes seconds, of a large one minutes
        return _serve(options, listening)


def _need_extra() -> None:
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError("`lumos play` needs a server", got=str(error), fix="pip install 'lumos_pl[play]'") from None


def _serve(options: argparse.Namespace, listening: socket.socket) -> int:
    import asyncio

    import uvicorn

    from experiments.own_parts import import_for_sampling
    from experiments.play.jobs import Studio
    from experiments.play.server import build_app
    from lumos_pl.checkpoints.named import EMBEDDED
    from lumos_pl.pipeline import LumosPipeline

    import_for_sampling(options.imports)
    pipeline = LumosPipeline.load(
        options.source or EMBEDDED,
        adapters=options.adapters,
        weights=options.weights,
        visual_tokenizer=options.tokenizer,
        text_tokenizer=options.text_tokenizer,
        device=options.device,
    )
    studio = Studio(pipeline, weights=options.weights)
    app = build_app(studio, host=options.host, name="" if options.source is None else str(options.source))

    signals: list[int] = []

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            """Ctrl-C ends the streams too, which uvicorn would wait for."""
            signals.append(sig)
            super().handle_exit(sig, frame)
            asyncio.get_running_loop().call_soon_threadsafe(studio.stop)

    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=64,
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=16 << 10,
    )
    server = Server(config)
    try:
        server.run(sockets=[listening])
    finally:
        studio.stop()
        if not studio.join() or signal.SIGINT in signals:
            # Amid a step that takes long Python could not end in good order, and it takes more than a second to take
            # torch apart. Nothing is left to be done.
            sys.stdout.flush()
            os._exit(130)
    return 0
