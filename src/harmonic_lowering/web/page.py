"""The page itself: what is on it, and what each control does."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch

from ..audio import AudioError
from ..cli.storage import Place
from ..cli.task import Options
from ..denoise import Denoiser
from .recordings import Cancelled, Limits, Line, Recording, Session, Visitors

__all__ = ["build"]

_SHOWN_S = 0.3  # between two looks at the progress


def build(gr: Any, visitors: Visitors, limits: Limits) -> Any:
    """Build the page with gradio's module `gr`."""
    default, line = Denoiser(), Line(limits)
    with gr.Blocks(
        title="harmonic-lowering", analytics_enabled=False, delete_cache=(3600, 3600)
    ) as page:
        gr.HTML(
            "<h1>Remove noise from recordings</h1><p>Everything happens on the machine that serves "
            "this page. Files are deleted when you close it.</p>"
        )
        with gr.Row():
            with gr.Column(min_width=320):
                upload = gr.File(
                    label=f"Recordings: up to {limits.size_mb:g} MB and {limits.minutes:g} minutes "
                    "each",
                    file_count="multiple", height=150, elem_id="upload",
                )  # fmt: skip
                with gr.Accordion("Record with the microphone", open=False):
                    microphone = gr.Audio(
                        sources=["microphone"], type="filepath", show_label=False, elem_id="record"
                    )
            with gr.Column(min_width=320):
                quality = gr.Radio(
                    [("Fast", "fast"), ("Default", "default"), ("Best", "best")],
                    value=default.quality, label="Quality",
                    info="About 0.06, 0.5 or 2 s of work for each second of sound at 16 kHz",
                )  # fmt: skip
                strength = gr.Slider(
                    0, 1, value=default.strength, step=0.05, label="Strength",
                    info="Share of the noise to take away",
                )  # fmt: skip
                with gr.Accordion("More choices", open=False):
                    limit = gr.Number(
                        0, minimum=0, label="Attenuate by at most (dB)", info="0: no limit"
                    )
                    channels = gr.Radio(
                        [("Linked: keep the stereo image", "linked"),
                         ("Separate: one microphone each", "separate")],
                        value="linked", label="Channels",
                    )  # fmt: skip
                    declick = gr.Checkbox(
                        default.declick, label="Repair clicks, clipped peaks and short gaps"
                    )
                    hum = gr.Checkbox(default.hum, label="Remove mains hum and whistles")
                    rumble = gr.Checkbox(
                        default.rumble, label="Remove what lies below the lowest pitch"
                    )
                    offset = gr.Checkbox(False, label="Remove a constant offset")
        chooser = gr.Radio([], label="Recording", visible=False, elem_id="chooser")
        player = gr.HTML(elem_id="player")
        with gr.Row(visible=False) as sample:
            first = gr.Number(None, label="Noise alone from (s)", minimum=0, elem_id="noise-from")
            last = gr.Number(None, label="to (s)", minimum=0, elem_id="noise-to")
        with gr.Row():
            start = gr.Button("Remove the noise", variant="primary", interactive=False)
            cancel = gr.Button("Cancel", interactive=False, elem_id="cancel")
        results = gr.HTML(elem_id="results")
        picture = gr.HTML(elem_id="picture")

        for component in (upload, microphone):
            _take_uploads_only(component)

        def asked(handler: Any) -> Any:
            """Have gradio say whose request it is; it looks for this type."""
            handler.__annotations__["request"] = gr.Request
            return handler

        def session(request: Any) -> Session:
            return visitors.session(request.session_hash)

        def shown(mine: Session) -> dict[Any, Any]:
            """What the page shows of the recordings and the selected one."""
            names = [(f"{i + 1}. {r.name}", i) for i, r in enumerate(mine.recordings)]
            some = bool(names)
            selected = mine.recordings[mine.selected] if some else None
            numbers = selected.numbers if selected else (None, None)
            return {
                chooser: gr.update(choices=names, value=mine.selected, visible=len(names) > 1),
                player: _player(selected) if selected else "",
                picture: _picture(selected) if selected else "",
                sample: gr.update(visible=some),
                first: numbers[0],
                last: numbers[1],
                start: gr.update(interactive=some and not mine.busy.locked()),
                results: _results(mine),
            }

        everything = [chooser, player, sample, first, last, start, cancel, results, picture]

        @asked
        def add(request: Any, files: list[str] | str | None, a: Any, b: Any) -> Any:
            mine = session(request)
            _keep_numbers(mine, a, b)
            mine.refused.clear()
            count = len(mine.recordings)
            for file in [files] if isinstance(files, str) else files or []:
                mine.add(Path(file), limits)
            if len(mine.recordings) > count:
                mine.selected = count
            return {upload: None, microphone: None, **shown(mine)}

        @asked
        def select(request: Any, number: Any, a: Any, b: Any) -> Any:
            mine = session(request)
            _keep_numbers(mine, a, b)
            mine.selected = max(0, min(int(number or 0), len(mine.recordings) - 1))
            return shown(mine)

        @asked
        def denoise(request: Any, a: Any, b: Any, *choices: Any) -> Iterator[Any]:
            mine = session(request)
            _keep_numbers(mine, a, b)
            mine.refused.clear()
            try:
                options = _options(*choices)
                for recording in mine.recordings:
                    recording.noise_from()
            except (TypeError, ValueError) as error:
                mine.refused.append(str(error))
                yield {results: _results(mine)}
                return
            if mine.recordings and mine.busy.acquire(blocking=False):
                mine.stop.clear()
                work = threading.Thread(target=_work, args=(mine, options, line, limits))
                work.start()
                yield {start: gr.update(interactive=False), cancel: gr.update(interactive=True)}
                before = ""
                while work.is_alive():
                    now = _results(mine)
                    if now != before:  # or a link that is being clicked would be replaced
                        yield {results: now}
                    before = now
                    work.join(_SHOWN_S)
            after = shown(mine)
            del after[first], after[last]  # they may have been changed meanwhile
            yield {**after, cancel: gr.update(interactive=False)}

        @asked
        def stop(request: Any) -> None:
            session(request).stop.set()

        @asked
        def leave(request: Any) -> None:
            visitors.end(request.session_hash)

        settings = [quality, strength, limit, channels, declick, hum, rumble, offset]
        hidden = {"api_visibility": "private", "concurrency_limit": None}
        taken = [upload, microphone, *everything]
        upload.upload(add, [upload, first, last], taken, **hidden)
        microphone.stop_recording(add, [microphone, first, last], taken, **hidden)
        chooser.input(select, [chooser, first, last], everything, **hidden)
        start.click(denoise, [first, last, *settings], everything, show_progress="hidden", **hidden)
        cancel.click(stop, None, None, **hidden)
        page.unload(leave)
    return page


def _take_uploads_only(component: Any) -> None:
    """Refuse files that a request names by an address or by their place on this machine.

    gradio fetches the former, and lets the latter pass in an app that is mounted.
    """
    uploads = os.path.realpath(component.GRADIO_CACHE)
    move = component.async_move_resource_to_block_cache

    async def move_upload(resource: Any) -> Any:
        if not Path(os.path.realpath(str(resource))).is_relative_to(uploads):
            raise ValueError("only files that were uploaded can be used")
        return await move(resource)

    component.async_move_resource_to_block_cache = move_upload


def _options(
    quality: str, strength: float, limit: float | None, channels: str, declick: bool,
    hum: bool, rumble: bool, offset: bool,
) -> Options:  # fmt: skip
    denoiser = Denoiser(
        quality=quality,
        strength=strength,
        atten_lim=limit or None,
        declick=declick,
        hum=hum,
        rumble=rumble,
    )
    return Options(denoiser, force=True, separate=channels == "separate", remove_dc=offset)


def _keep_numbers(mine: Session, first: Any, last: Any) -> None:
    """The two numbers belong to the recording that is selected."""
    if mine.selected < len(mine.recordings):
        mine.recordings[mine.selected].numbers = (first, last)


def _work(mine: Session, options: Options, line: Line, limits: Limits) -> None:
    """Denoise one recording after the other; a thread of its own, whatever becomes of the page."""
    threads = max(1, torch.get_num_threads() // limits.jobs)
    recordings = list(mine.recordings)  # more may be dropped meanwhile
    for recording in recordings:
        recording.outcome, recording.state = None, "waiting"
    try:
        with line.place() as before:
            while (ahead := before()) and not mine.stop.wait(_SHOWN_S):
                mine.ahead = ahead
            mine.ahead = 0
            for recording in recordings:
                if mine.stop.is_set():
                    break
                try:
                    own = replace(options, noise_from=recording.noise_from())
                    recording.denoise(own, threads, mine.stop.is_set)
                except (AudioError, OSError, ValueError) as error:
                    mine.refused.append(recording.public(str(error)))
    except AudioError as error:  # the line is too long
        mine.refused.append(str(error))
    except Cancelled:
        pass
    finally:
        for recording in recordings:
            if recording.outcome is None:
                recording.state = "cancelled"
        mine.busy.release()


def _results(mine: Session) -> str:
    """What is known about every recording, with links to the files that there are."""
    parts = [f'<div class="failed" role="alert">{escape(text)}</div>' for text in mine.refused]
    parts += [_result(recording, mine.ahead) for recording in mine.recordings]
    busy = str(mine.busy.locked()).lower()
    return f'<div class="hl-results" role="status" aria-busy="{busy}">{"".join(parts)}</div>'


def _result(recording: Recording, ahead: int) -> str:
    outcome, state, lines, links = recording.outcome, recording.state, [], []
    if outcome is not None:
        state = outcome.status
        lines = [outcome.found, outcome.error, *outcome.notes]
    if state == "done" and outcome is not None:
        job, stem = recording.job, Path(recording.name).stem
        wanted = [("Download", outcome.target, outcome.target.name)]
        if job.noise is not None:
            wanted.append(("What was removed", job.noise, f"{stem}-removed{job.noise.suffix}"))
        if job.picture is not None:
            wanted.append(("Picture", job.picture, job.picture.name))
        links = [
            f'<a href="{_address(path, recording.runs)}" download="{escape(name)}">{text}</a>'
            for text, path, name in wanted
        ]
    told = state
    if state == "waiting" and ahead:
        told = f"waiting for {ahead} visitor{'s' * (ahead > 1)} to be served"
    bar = ""
    if state == "working":
        told = f"{recording.done_s:.1f} of {recording.seconds:.1f} s"
        bar = (
            f'<progress aria-label="Progress of {escape(recording.name)}" '
            f'max="{recording.seconds}" value="{recording.done_s}"></progress>'
        )
    items = "".join(f"<li>{escape(recording.public(text))}</li>" for text in lines if text)
    return (
        f'<div class="{state}"><strong>{escape(recording.name)}</strong> ({recording.about}) '
        f"<span>{told}</span>{bar}<ul>{items}</ul>{''.join(links)}</div>"
    )


def _player(recording: Recording) -> str:
    """The element that page.js defines."""
    try:
        tracks = recording.tracks()
    except (AudioError, OSError) as error:
        return f'<div role="alert">{escape(recording.public(str(error)))}</div>'
    data = {
        "key": recording.job.source.parent.name,
        "seconds": recording.seconds,
        "tracks": [
            {"label": track.label, "src": _address(track.path), "peaks": track.peaks}
            for track in tracks
        ],
    }
    return f'<sound-compare data="{escape(json.dumps(data))}"></sound-compare>'


def _picture(recording: Recording) -> str:
    outcome, path = recording.outcome, recording.job.picture
    if outcome is None or outcome.status != "done" or path is None:
        return ""
    return (
        f'<img class="hl-picture" src="{_address(path, recording.runs)}" '
        'alt="Spectrograms of the recording before, after, and of what was removed">'
    )


def _address(path: Place, run: int = 0) -> str:
    return f"gradio_api/file={quote(str(path))}?{run}"
