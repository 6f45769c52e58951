"""A conversation in the browser: one page, served to this machine alone unless the config says otherwise."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from PIL import Image

from lav2.chat.conversation import Conversation
from lav2.chat.examples import copy_small, find_examples
from lav2.data.images import load_image
from lav2.errors import UserError
from lav2.experts import Experts
from lav2.inference import Assistant

try:
    import gradio as gr
except ImportError:
    raise UserError('the web page needs gradio: pip install -e ".[web]"') from None

STYLE = Path(__file__).with_name("page.css")
SETTINGS = ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed")
WHOLE = ("max_new_tokens", "top_k", "seed")


@dataclass
class Session:
    """One visitor's conversation, and the messages that the page shows of it."""

    conversation: Conversation
    messages: list[dict[str, Any]] = field(default_factory=list)


def picture_box(**settings: Any) -> gr.Image:
    """An image component that hands on the uploaded file and its name as they are: gradio would open the file itself,
    and say of what is no picture that something went wrong."""
    box = gr.Image(**settings)
    box.preprocess = lambda payload: payload and (payload.path, payload.orig_name or "picture")
    return box


class Page:
    """The page and what happens on it.

    Args:
        assistant: who answers everybody, one after another.
        experts: whom visitors can choose from.
        settings: of the generation, to begin with.
        cfg: ``run``, ``turns`` and ``web`` of ``conf/chat.yaml``.
        folder: where the page keeps files; nothing else can be read through it.
    """

    def __init__(
        self, assistant: Assistant, experts: Experts, settings: Mapping[str, Any], cfg: DictConfig, folder: Path
    ):
        self.assistant, self.experts, self.settings, self.cfg = assistant, experts, dict(settings), cfg
        self.folder = folder
        self.names = [expert.name for expert in experts.experts]
        self.takes_pictures = assistant.encoder is not None or bool(self.names)
        self.examples: list[tuple[Path, str]] = []
        if self.takes_pictures:
            question = next(iter(assistant.caption_prompts), "Describe the picture.")
            self.examples = copy_small(find_examples(Path(cfg.run), cfg.web.examples, question), folder)

    def build(self) -> gr.Blocks:
        """The page's components and their events."""
        one_by_one = {"concurrency_limit": 1, "concurrency_id": "model", "show_progress": "hidden"}
        one_by_one["api_visibility"] = "private"
        with gr.Blocks(title="lav2", analytics_enabled=False, delete_cache=(3600, 86400), fill_width=True) as page:
            session = gr.State(None, time_to_live=86400)
            gr.Markdown(f"### lav2 · {Path(self.cfg.run).resolve().name}", elem_id="title")
            with gr.Row(elem_id="page"):
                with gr.Column(scale=2, min_width=280, elem_id="side"):
                    picture = picture_box(
                        show_label=False,
                        placeholder="Drop a picture here\nor click to choose one",
                        sources=["upload", "clipboard"],
                        height=260,
                        buttons=[],
                        visible=self.takes_pictures,
                        elem_id="picture",
                    )
                    if self.examples:
                        examples = gr.Dataset(
                            components=[gr.Image(visible=False)],
                            samples=[[str(path)] for path, _ in self.examples],
                            type="index",
                            label="Examples",
                            elem_id="examples",
                        )
                    with gr.Accordion("Experts", open=True, visible=bool(self.names), elem_id="experts"):
                        chosen = gr.CheckboxGroup(self.names, value=self.names, show_label=False, container=False)
                        told = gr.Textbox(
                            show_label=False,
                            placeholder="What they say about the picture",
                            lines=2,
                            interactive=False,
                            container=False,
                            elem_id="told",
                        )
                    with gr.Accordion("Settings", open=False, elem_id="settings"):
                        settings = self.sliders()
                with gr.Column(scale=5, min_width=300, elem_id="talk"):
                    talk = gr.Chatbot(
                        show_label=False,
                        height="62vh",
                        render_markdown=False,  # an answer's words, never its markup: no picture from elsewhere
                        buttons=["copy"],
                        allow_file_downloads=False,
                        feedback_options=None,
                        placeholder="Drop a picture, and ask about it." if self.takes_pictures else "Ask anything.",
                        elem_id="chat",
                    )
                    note = gr.Markdown(visible=False, elem_id="note")
                    question = gr.Textbox(
                        show_label=False,
                        placeholder="Your question",
                        submit_btn="Ask",
                        max_lines=6,
                        autofocus=True,
                        elem_id="question",
                    )
                    with gr.Row(elem_id="buttons"):
                        stop = gr.Button("Stop", size="sm", min_width=80)
                        new = gr.Button("New", size="sm", min_width=80)
                        save = gr.DownloadButton("Download", size="sm", min_width=80, interactive=False)
            shown = [session, picture, talk, told]
            picture.upload(self.show, [session, picture, chosen], shown, **one_by_one)
            picture.clear(self.hide, [session, chosen], [session, told], **one_by_one)
            chosen.change(self.choose, [session, chosen], [session, told], **one_by_one)
            if self.examples:
                examples.click(self.show_example, [session, examples, chosen], [*shown, question], **one_by_one)
            answering = question.submit(
                self.answer,
                [session, question, chosen, *settings],
                [session, question, talk, note, told, save],
                **one_by_one,
            )
            stop.click(None, cancels=[answering])
            leave = gr.on([new.click, talk.clear], None, cancels=[answering])
            leave.then(self.begin_anew, [chosen], [session, picture, talk, told, note, save], **one_by_one)
        return page

    def sliders(self) -> list[gr.components.Component]:
        """A component for each of ``SETTINGS``."""
        longest, value = self.assistant.model.llama.config.max_length, self.settings
        return [
            gr.Slider(1, longest - 1, value["max_new_tokens"], step=1, label="Longest answer, tokens"),
            gr.Slider(0, 2, value["temperature"], step=0.05, label="Temperature", info="0: the likeliest words"),
            gr.Slider(0.05, 1, value["top_p"], step=0.05, label="Top p"),
            gr.Slider(0, 200, value["top_k"], step=1, label="Top k", info="0: no limit"),
            gr.Slider(0.5, 2, value["repetition_penalty"], step=0.05, label="Repetition penalty"),
            gr.Number(value["seed"], precision=0, minimum=0, label="Seed"),
        ]

    # What happens ----------------------------------------------------------------------------------------------------

    def begin(self, session: Session | None, chosen: list[str]) -> Session:
        """The visitor's session, asking the chosen experts; a new one if there is none."""
        experts = self.experts.only(chosen)
        if session is None:
            return Session(Conversation(self.assistant, experts, self.cfg.turns))
        if experts.experts != session.conversation.experts.experts:
            session.conversation.use(experts)
        return session

    def show(self, session: Session | None, picture: tuple[str, str] | None, chosen: list[str]):
        """A picture was dropped."""
        if picture is None:  # taken away at once
            return session, None, gr.skip(), ""
        path, name = picture
        session = self.begin(session, chosen)
        try:
            session.conversation.show(self.read(path, name), name)
        except UserError as error:
            gr.Warning(str(error))
            session.conversation.show(None)
            return session, None, session.messages, ""
        session.messages.append({"role": "user", "content": {"path": path, "alt_text": name}})
        return session, gr.skip(), session.messages, self.told(session)

    def show_example(self, session: Session | None, index: int, chosen: list[str]):
        """An example was clicked: its picture is shown, its question stands ready."""
        path, question = self.examples[index]
        session, _, messages, told = self.show(session, (str(path), path.name), chosen)
        return session, str(path), messages, told, question

    def hide(self, session: Session | None, chosen: list[str]):
        """The picture was taken away."""
        session = self.begin(session, chosen)
        session.conversation.show(None)
        return session, ""

    def choose(self, session: Session | None, chosen: list[str]):
        """Other experts were chosen."""
        session = self.begin(session, chosen)
        return session, self.told(session)

    def begin_anew(self, chosen: list[str]):
        session = self.begin(None, chosen)
        return session, None, [], "", gr.update(visible=False), gr.update(value=None, interactive=False)

    def answer(self, session: Session | None, question: str, chosen: list[str], *values: float) -> Iterator[tuple]:
        """A question was asked: its answer, growing."""
        session = self.begin(session, chosen)
        conversation, messages = session.conversation, session.messages
        settings = self.settings | {
            name: int(value) if name in WHOLE else value for name, value in zip(SETTINGS, values, strict=True)
        }
        try:
            pieces = conversation.ask(question, **settings)
        except UserError as error:
            gr.Warning(str(error))
            yield session, gr.skip(), messages, gr.skip(), gr.skip(), gr.skip()
            return
        note = gr.update(value=conversation.note, visible=bool(conversation.note))
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": ""}]
        yield session, "", messages, note, self.told(session), gr.skip()
        with closing(pieces):
            for piece in pieces:
                messages[-1]["content"] += piece
                yield session, gr.skip(), messages, gr.skip(), gr.skip(), gr.skip()
        yield session, gr.skip(), messages, gr.skip(), gr.skip(), self.download(session)

    def download(self, session: Session) -> dict[str, Any]:
        """The conversation as a file behind the button."""
        path = Path(tempfile.mkdtemp(dir=self.folder)) / "conversation.json"
        session.conversation.save(path)
        return gr.update(value=str(path), interactive=True)

    def told(self, session: Session) -> str:
        """What the chosen experts say about the picture, a line each."""
        said, lines = session.conversation.consult(), []
        for expert in session.conversation.experts.experts:
            if session.conversation.image is not None:
                failure = said.failures.get(expert.name)
                text = f"(failed: {failure})" if failure else said.texts[expert.name] or "(nothing)"
                lines.append(f"{expert.name}: {text}")
        return "\n".join(lines)

    def read(self, path: str, name: str) -> Image.Image:
        """The uploaded picture, in RGB.

        Raises:
            UserError: it is none, or has too many pixels.
        """
        most = self.cfg.web.max_megapixels
        try:
            with Image.open(path) as image:
                megapixels = image.width * image.height / 1e6
            if megapixels > most:
                raise UserError(f"{name} has {megapixels:.1f} megapixels; a picture can have {most} here")
            return load_image(Path(path))
        except Image.DecompressionBombError:
            raise UserError(f"{name} has far more than the {most} megapixels a picture can have here") from None
        except (OSError, SyntaxError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{name} is no picture that can be read; try JPEG, PNG or WebP") from None


def serve(
    assistant: Assistant, experts: Experts, settings: Mapping[str, Any], cfg: DictConfig, block: bool = True
) -> gr.Blocks:
    """Open the page at ``cfg.web.host`` and ``port``; until Ctrl-C, unless ``block`` is false.

    Raises:
        UserError: the port is taken, or ``web.examples`` holds no picture.
    """
    folder = Path(tempfile.mkdtemp(prefix="lav2_page_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)  # uploads
    page = Page(assistant, experts, settings, cfg, folder).build().queue(max_size=64)
    host, port = cfg.web.host, cfg.web.port
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=f"{cfg.web.max_megabytes}mb",
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css_paths=STYLE,
            footer_links=[],
            ssr_mode=False,
            mcp_server=False,
        )
    except OSError as error:
        raise UserError(f"cannot open the page at {host}:{port}: {error}; choose another web.port") from None
    print(f"open http://{host}:{port} in a browser; Ctrl-C ends", flush=True)
    if block:
        page.block_thread()
    return page
