"""`aut serve`: the registered encoder behind HTTP, following its alias."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from aut.edges.versions import Registry
    from aut.serving.watcher import Source

DEFAULT = "models:/whisper-aut@champion"


def serve(
    model: Annotated[str, typer.Option("--model", help="models:/NAME@ALIAS, models:/NAME/NUMBER, or a folder.")] = "",
    alias: Annotated[str, typer.Option("--alias", help="Short for models:/whisper-aut@ALIAS.")] = "",
    host: Annotated[str, typer.Option("--host", help="Address to listen on; AUT_SERVE_KEY guards others.")] = "",
    port: Annotated[int, typer.Option("--port", min=0, max=65_535)] = 8080,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one.")] = "",
    poll_s: Annotated[float, typer.Option("--poll-s", min=0.05, help="Seconds between looks at the alias.")] = 5.0,
    budget_ms: Annotated[
        int | None, typer.Option("--budget-ms", min=0, help="To wait longer is 429; default: by load; 0: always short.")
    ] = None,
    queue: Annotated[int, typer.Option("--queue", min=1, help="Clips admitted at once.")] = 128,
    max_mb: Annotated[int, typer.Option("--max-mb", min=1, help="Of a request's body.")] = 32,
    max_s: Annotated[float, typer.Option("--max-s", min=0.1, help="Seconds of audio of a clip.")] = 300.0,
    max_clips: Annotated[int, typer.Option("--max-clips", min=1, help="Of a request.")] = 64,
    max_total_s: Annotated[
        float, typer.Option("--max-total-s", min=0.1, help="Seconds of audio of a request.")
    ] = 600.0,
    batch_s: Annotated[
        float, typer.Option("--batch-s", min=1, help="Seconds of audio of a pass; 1000 on a GPU.")
    ] = 32.0,
    timeout_s: Annotated[float, typer.Option("--timeout-s", min=0.1, help="Deadline of a request.")] = 30.0,
) -> None:
    """Serve the version an alias names: embeddings, classes, a page. Follows the alias without dropping a request.

    AUT_SERVE_KEY, or a file named by AUT_SERVE_KEY_FILE, holds the API key; without one nobody is asked.
    """
    from aut.serving.app import create
    from aut.serving.limits import Limits
    from aut.serving.listen import listen
    from aut.serving.service import Service

    limits = Limits(
        request_bytes=max_mb << 20,
        held_bytes=max(256, 4 * max_mb) << 20,
        clip_s=max_s,
        clips=min(max_clips, queue),
        audio_s=max(max_total_s, max_s),
        queue_s=max(Limits.queue_s, max_total_s, max_s),
        request_s=timeout_s,
        queue=queue,
        batch_s=batch_s,
        budget_s=None if budget_ms is None else budget_ms / 1000,
    )
    _log()
    host, key = host or "127.0.0.1", api_key()
    names = None if key else own_names(host)
    service = Service(_source(model, alias), limits, device=device or None, poll_s=poll_s, key=key, hosts=names)
    shown = f"[{host}]" if ":" in host else host

    def bound(port: int) -> None:
        typer.echo(f"aut serves on http://{shown}:{port} (stop with Ctrl-C)", err=True)

    listen(create(service), host, port, bound)


LOOPBACK = ("localhost", "127.0.0.1", "::1")


def own_names(host: str) -> frozenset[str] | None:
    """Names answered where only this machine can connect: its own and those of AUT_HOSTS. None: any name.

    A page from elsewhere can make its own name point at the loopback address (DNS rebinding), and would then be asked
    for nothing.
    """
    if host not in LOOPBACK:
        return None
    given = (name.strip().lower().partition(":")[0] for name in os.environ.get("AUT_HOSTS", "").split(","))
    return frozenset({*LOOPBACK, *given} - {""})


def api_key() -> str | None:
    """AUT_SERVE_KEY, else the contents of AUT_SERVE_KEY_FILE (a mounted secret). ConfigError: an empty one."""
    from aut.errors import ConfigError

    path = os.environ.get("AUT_SERVE_KEY_FILE")
    key = os.environ.get("AUT_SERVE_KEY")
    if key is None and path:
        try:
            key = Path(path).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"AUT_SERVE_KEY_FILE {path} cannot be read: {error}", "give a readable file") from None
    if key is not None and not key:
        raise ConfigError("the API key is empty", "unset AUT_SERVE_KEY and AUT_SERVE_KEY_FILE, or give a key")
    return key


def _source(model: str, alias: str) -> Source:
    """The registry that `aut use` or MLFLOW_TRACKING_URI names, else the checkout's own; or a folder."""
    from aut.errors import ConfigError

    if model and alias:
        raise ConfigError("--model and --alias exclude each other", "give one")
    address = model or (f"models:/whisper-aut@{alias}" if alias else DEFAULT)
    if address.startswith("models:/"):
        return _hinted(_registry(address))
    from aut.errors import MissingInput
    from aut.serving.watcher import Folder

    folder = Path(address).expanduser()
    if not any((folder / place).is_file() for place in ("encoder.json", "encoder/encoder.json")):
        raise MissingInput(f"{folder} holds no encoder (no encoder.json)", "give models:/NAME@ALIAS or a folder")
    return Folder(folder)


def _registry(address: str) -> Registry:
    from aut.edges import tracking
    from aut.edges.versions import Registry
    from aut.errors import ConfigError
    from aut.layout import Layout
    from aut.workcopy import checkout_root

    try:
        layout = Layout(checkout_root())
    except ConfigError:  # outside a checkout the address must be known
        uri = tracking.resolve_uri()
        return Registry(uri, address)
    uri = tracking.resolve_uri(tracking.embedded_uri(layout))
    return Registry(uri, address, lambda: None if uri.startswith("http") else tracking.ready(uri, layout))


def _hinted(registry: Registry) -> Registry:
    """With the command that AUT_SERVE_HINT tells where there is no version: a container's people have no `aut`."""
    registry.command = os.environ.get("AUT_SERVE_HINT") or registry.command
    return registry


def _log() -> None:
    import logging

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s: %(message)s")
    logging.getLogger("aut.serving").setLevel(logging.INFO)


def add_to(app: typer.Typer) -> None:
    app.command(serve.__name__, rich_help_panel="Runs")(serve)
