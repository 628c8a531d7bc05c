// One recording to listen to: before, after and what was removed, switched at the same place; and a
// waveform to move in and to select the noise on. gradio edits what it shows in place, so the parts
// live in a shadow tree, and are made anew when the data changes.
class SoundCompare extends HTMLElement {
  static observedAttributes = ["data"];
  static places = new Map(); // where each recording was, as its parts are made anew
  static style = `
    :host { display: block; color: var(--body-text-color); }
    canvas {
      display: block; width: 100%; height: 8rem; box-sizing: border-box; cursor: crosshair;
      touch-action: pan-y; border: 1px solid var(--border-color-primary);
      border-radius: var(--radius-md); background: var(--background-fill-secondary);
    }
    :focus-visible { outline: 3px solid var(--color-accent); outline-offset: 2px; }
    div { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem 1rem; margin: .5rem 0; }
    label { margin-right: .75rem; white-space: nowrap; cursor: pointer; line-height: 2; }
    input { accent-color: var(--primary-600); width: 1.1rem; height: 1.1rem; vertical-align: -.15rem; }
    button {
      font: inherit; color: inherit; background: var(--button-secondary-background-fill);
      border: 0; border-radius: var(--radius-md); padding: .4rem .8rem; cursor: pointer;
    }
    button.play {
      width: 3rem; height: 2.5rem; font-size: 1.1rem; color: white; background: var(--primary-600);
    }
    output { margin-left: auto; font-variant-numeric: tabular-nums; }
    p { margin: .4rem 0; font-size: .85rem; opacity: .8; }
    @media (pointer: coarse) { .keys { display: none; } }`;

  connectedCallback() {
    this.redraw = () => this.update();
    document.addEventListener("input", this.redraw); // the numbers are the selection
    this.observer = new ResizeObserver(this.redraw);
    this.observer.observe(this);
    this.build();
  }

  disconnectedCallback() {
    document.removeEventListener("input", this.redraw);
    this.observer.disconnect();
    this.silence();
  }

  attributeChangedCallback() {
    if (this.tracks) this.build();
  }

  silence() {
    for (const { sound } of this.tracks ?? []) {
      sound.onerror = null;
      sound.pause();
      sound.removeAttribute("src");
    }
  }

  build() {
    this.silence();
    const { key, seconds, tracks } = JSON.parse(this.getAttribute("data"));
    Object.assign(this, { key, seconds, tracks, index: 0, wanted: 0 });
    const root = this.shadowRoot ?? this.attachShadow({ mode: "open" });
    root.innerHTML = `
      <style>${SoundCompare.style}</style>
      <div>
        <button type="button" class="play" aria-label="Play"
          ><svg viewBox="0 0 16 16" width="16" fill="currentColor"><path /></svg></button>
        <span role="radiogroup" aria-label="Listen to"></span>
        <output></output>
      </div>
      <canvas tabindex="0" role="slider" aria-label="Playing place" aria-valuemin="0"
        aria-valuemax="${seconds}"></canvas>
      <div>
        <p>Click to move. Drag over a stretch that holds only noise to use it as the sample of the
          noise. <span class="keys">Keys on the waveform: space, arrows, Home, End; 1, 2, 3 to switch;
          [ and ] to begin and end the sample.</span></p>
        <button type="button" class="clear">Clear the sample</button>
      </div>`;
    this.canvas = root.querySelector("canvas");
    this.button = root.querySelector(".play");
    this.clock = root.querySelector("output");
    this.radios = tracks.map((track, index) => {
      track.sound = new Audio(track.src);
      track.sound.preload = "auto";
      track.sound.onended = () => this.update();
      track.sound.onerror = () => {
        this.clock.textContent = `${track.label} cannot be played by this browser`;
      };
      const label = document.createElement("label");
      const radio = Object.assign(document.createElement("input"), {
        type: "radio", name: "track", value: index, onchange: () => this.switchTo(index),
      });
      label.append(radio, ` ${track.label}`);
      root.querySelector("[role=radiogroup]").append(label);
      return radio;
    });
    this.button.onclick = () => this.toggle();
    root.querySelector(".clear").onclick = () => this.select(null, null);
    this.canvas.onpointerdown = (event) => this.press(event);
    this.canvas.onkeydown = (event) => this.keyPressed(event);
    const kept = SoundCompare.places.get(key) ?? { time: 0, track: 0 };
    this.switchTo(Math.min(kept.track, tracks.length - 1));
    this.seek(kept.time);
  }

  get sound() { return this.tracks[this.index].sound; }
  get place() { return this.sound.currentTime || this.wanted; }

  async toggle() {
    if (this.sound.paused) {
      if (this.sound.ended) this.seek(0);
      await this.sound.play().catch(() => {});
    } else this.sound.pause();
    this.update();
  }

  seek(time) {
    this.wanted = Math.min(Math.max(time, 0), this.seconds);
    this.sound.currentTime = this.wanted;
    this.update();
  }

  // The new track starts where the old one is, and the old one ends only then.
  async switchTo(index) {
    const before = this.sound, playing = !before.paused && !before.ended, time = this.place;
    this.index = index;
    this.radios[index].checked = true;
    if (this.sound === before) return this.update();
    this.wanted = time;
    this.sound.currentTime = time;
    if (playing) {
      const next = this.sound;
      const started = await next.play().then(() => true, () => false);
      if (started && next === this.sound) next.currentTime = before.currentTime;
    }
    for (const track of this.tracks) if (track.sound !== this.sound) track.sound.pause();
    this.update();
  }

  // The selection lives in the two numbers of the page.
  get numbers() {
    return ["noise-from", "noise-to"].map((id) => document.querySelector(`#${id} input`));
  }
  get selection() {
    const [from, to] = this.numbers.map((box) => (box && box.value !== "" ? +box.value : NaN));
    return from < to ? [from, to] : null;
  }
  select(from, to) {
    [from, to].forEach((value, index) => {
      const box = this.numbers[index];
      if (!box || value === undefined) return;
      box.value = value === null ? "" : Math.floor(value * 1000) / 1000; // never behind the end
      for (const kind of ["input", "change", "blur"]) {
        box.dispatchEvent(new Event(kind, { bubbles: true }));
      }
    });
    this.update();
  }

  timeAt(event) {
    const box = this.canvas.getBoundingClientRect();
    return Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1) * this.seconds;
  }
  press(event) {
    if (event.button) return;
    this.canvas.setPointerCapture(event.pointerId);
    const start = this.timeAt(event), x = event.clientX;
    let dragged = false;
    this.canvas.onpointermove = (moved) => {
      dragged ||= Math.abs(moved.clientX - x) > 5;
      const now = this.timeAt(moved);
      if (dragged) this.select(Math.min(start, now), Math.max(start, now));
    };
    this.canvas.onpointerup = this.canvas.onpointercancel = () => {
      this.canvas.onpointermove = this.canvas.onpointerup = this.canvas.onpointercancel = null;
      if (!dragged) this.seek(start);
    };
  }

  keyPressed(event) {
    const step = event.shiftKey ? 0.1 : 1;
    const actions = {
      " ": () => this.toggle(),
      ArrowLeft: () => this.seek(this.place - step),
      ArrowRight: () => this.seek(this.place + step),
      Home: () => this.seek(0),
      End: () => this.seek(this.seconds),
      "[": () => this.select(this.place, undefined),
      "]": () => this.select(undefined, this.place),
    };
    this.tracks.forEach((_, index) => { actions[index + 1] = () => this.switchTo(index); });
    if (event.ctrlKey || event.metaKey || event.altKey || !actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  }

  update() {
    const playing = !this.sound.paused && !this.sound.ended;
    const shape = playing ? "M2 1h4v14H2zM10 1h4v14h-4z" : "M3 1l12 7-12 7z";
    this.button.querySelector("path").setAttribute("d", shape);
    this.button.setAttribute("aria-label", playing ? "Pause" : "Play");
    this.clock.textContent = `${clock(this.place)} / ${clock(this.seconds)}`;
    this.canvas.setAttribute("aria-valuenow", this.place.toFixed(2));
    this.canvas.setAttribute("aria-valuetext", `${this.place.toFixed(1)} seconds`);
    SoundCompare.places.set(this.key, { time: this.place, track: this.index });
    this.draw();
    if (playing && !this.ticking) {
      this.ticking = true;
      requestAnimationFrame(() => { this.ticking = false; this.update(); });
    }
  }

  draw() {
    const scale = window.devicePixelRatio || 1;
    const width = this.canvas.clientWidth, height = this.canvas.clientHeight;
    if (!width) return;
    if (this.canvas.width !== Math.round(width * scale)) this.canvas.width = width * scale;
    if (this.canvas.height !== Math.round(height * scale)) this.canvas.height = height * scale;
    const style = getComputedStyle(this);
    const dark = document.body.classList.contains("dark");
    const color = (name) => style.getPropertyValue(name);
    const pen = this.canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    const peaks = this.tracks[this.index].peaks, top = this.top();
    const x = (seconds) => (seconds / this.seconds) * width;
    if (this.selection) {
      pen.fillStyle = "rgb(234 179 8 / 45%)";
      pen.fillRect(x(this.selection[0]), 0, x(this.selection[1] - this.selection[0]), height);
    }
    pen.fillStyle = color(dark ? "--primary-400" : "--primary-600");
    for (let column = 0; column < width; column++) {
      const first = Math.floor((column / width) * peaks.length);
      const last = Math.max(first + 1, Math.floor(((column + 1) / width) * peaks.length));
      const half = Math.max(0.5, (Math.max(...peaks.slice(first, last)) / top) * (height / 2 - 2));
      pen.fillRect(column, height / 2 - half, 1, 2 * half);
    }
    pen.fillStyle = color("--body-text-color");
    pen.fillRect(x(this.place) - 1, 0, 2, height);
  }

  // All tracks on one scale, or quieter ones would look as loud as the loudest.
  top() { return Math.max(0.01, ...this.tracks.map((track) => Math.max(...track.peaks))); }
}

function clock(seconds) {
  const minutes = Math.floor(seconds / 60);
  return `${minutes}:${(seconds - 60 * minutes).toFixed(1).padStart(4, "0")}`;
}

customElements.define("sound-compare", SoundCompare);
