/**
 * sf-timeline: lanes of a video on one time axis: hits, scenes, speech, people, text on screen. A click seeks, a drag
 * zooms in, a double click zooms out, the pointer shows the picture of its moment.
 *
 * Properties: `duration` (seconds), `scenes` (TimelineScene[]), `hits` (SearchHit[]), `sprites` (see sprites.js).
 * Methods: `at(seconds)` moves the playhead.
 * Events: `sf-seek` (detail: {time}).
 */

import { LitElement, css, html, nothing } from "lit";
import { repeat } from "lit/directives/repeat.js";
import { controls } from "../controls.js";
import { placed } from "../placed.js";
import { spriteAt } from "../sprites.js";
import { t, time } from "../text.js";

/** @typedef {import("../types.js").TimelineScene} TimelineScene */
/** @typedef {import("../types.js").SearchHit} SearchHit */

const ROW_PX = 24;
const BAR_PX = 10;
const RULER_PX = 24;
/** A longer way of the pointer is a drag. */
const DRAG_PX = 6;
const LEAST_S = 2;
const PEOPLE = 5;
const STEPS_S = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];

/** @typedef {{key: string, name: string, href: string, spans: [number, number][], kind: "scenes" | "speech" | "person" | "text"}} Lane */

export class SfTimeline extends LitElement {
  static properties = {
    duration: { type: Number },
    scenes: { attribute: false },
    hits: { attribute: false },
    sprites: { attribute: false },
    view: { state: true },
    hover: { state: true },
    drag: { state: true },
    width: { state: true },
  };

  static styles = [
    controls,
    css`
      :host {
        user-select: none;
        -webkit-user-select: none;
      }
      .all {
        position: relative;
        display: grid;
        grid-template-columns: 88px minmax(0, 1fr);
        font-size: var(--text-xs);
        line-height: 24px;
      }
      .names {
        padding-top: 24px;
        color: var(--ink-2);
      }
      .names > * {
        display: block;
        height: 24px;
        overflow: hidden;
        padding-right: var(--s3);
        text-overflow: ellipsis;
        white-space: nowrap;
      }
      .names a {
        text-decoration: none;
      }
      .names a:hover {
        text-decoration: underline;
      }
      .lanes {
        grid-area: 1 / 2;
        position: relative;
        cursor: pointer;
        touch-action: pan-y;
        border-radius: 4px;
      }
      canvas {
        display: block;
        width: 100%;
      }
      .hits {
        position: relative;
        grid-area: 1 / 2;
        height: 24px;
        margin-top: 24px;
        overflow: hidden;
        pointer-events: none;
      }
      .hits button {
        pointer-events: auto;
      }
      .hits button {
        position: absolute;
        top: 0;
        height: 24px;
        min-width: 24px;
        padding: 0;
        border: 0;
        background: none;
        cursor: pointer;
      }
      .hits button::after {
        content: "";
        position: absolute;
        left: 0;
        top: 5px;
        width: var(--long);
        min-width: 6px;
        height: 14px;
        border-radius: 4px;
        background: var(--hit);
        opacity: var(--strength);
      }
      .hits button:hover::after {
        box-shadow: 0 0 0 2px var(--ground), 0 0 0 3px var(--hit);
      }
      .hits button:focus-visible {
        outline-offset: -2px;
      }
      .head,
      .line {
        position: absolute;
        top: 0;
        bottom: 0;
        left: 0;
        width: 2px;
        margin-left: -1px;
        background: var(--ink);
        pointer-events: none;
        will-change: transform;
      }
      .head::before {
        content: "";
        position: absolute;
        top: 14px;
        left: -4px;
        width: 10px;
        height: 10px;
        border-radius: 50%;
        background: var(--ink);
      }
      .clip {
        position: absolute;
        inset: 0 -6px;
        overflow: hidden;
        pointer-events: none;
      }
      .clip > .inner {
        position: absolute;
        inset: 0 6px;
      }
      .line {
        width: 1px;
        background: var(--ink-3);
      }
      .drag {
        position: absolute;
        top: 24px;
        bottom: 0;
        background: var(--hover);
        border: 1px solid var(--line-strong);
        border-width: 0 1px;
        pointer-events: none;
      }
      .peek {
        position: absolute;
        z-index: 20;
        bottom: calc(100% + 4px);
        transform: translateX(-50%);
        overflow: hidden;
        border: 1px solid var(--line);
        border-radius: var(--radius);
        background: var(--raised);
        box-shadow: var(--shadow);
        text-align: center;
        pointer-events: none;
      }
      .peek i {
        display: block;
        background-repeat: no-repeat;
      }
      .peek span {
        display: block;
        padding: 0 var(--s2);
        font-weight: var(--strong);
      }
      .zoom {
        position: absolute;
        top: 0;
        left: 0;
        height: 24px;
        padding: 0;
        border: 0;
        background: none;
        color: var(--ink);
        font-size: var(--text-xs);
        font-weight: var(--strong);
        text-decoration: underline;
        text-underline-offset: 3px;
        cursor: pointer;
      }
      .zoom::before {
        content: "";
        position: absolute;
        inset: -8px;
      }
      .probe {
        display: none;
      }
      @media (max-width: 719px) {
        .all {
          grid-template-columns: 68px minmax(0, 1fr);
        }
      }
    `,
  ];

  constructor() {
    super();
    this.duration = 0;
    /** @type {TimelineScene[]} */
    this.scenes = [];
    /** @type {SearchHit[]} */
    this.hits = [];
    /** @type {import("../sprites.js").Sprite[]} */
    this.sprites = [];
    /** @type {[number, number] | null} The shown span in seconds; null: all. */
    this.view = null;
    /** @type {number | null} The pointer's place, pixels. */
    this.hover = null;
    /** @type {[number, number] | null} */
    this.drag = null;
    this.width = 0;
    this.now = 0;
    /** @type {Lane[]} */
    this.lanes = [];
    this.sizes = new ResizeObserver(([entry]) => (this.width = Math.round(entry.contentRect.width)));
    this.themes = matchMedia("(prefers-color-scheme: dark)");
    this.redraw = () => requestAnimationFrame(() => this.#draw());
  }

  connectedCallback() {
    super.connectedCallback();
    this.themes.addEventListener("change", this.redraw);
    document.documentElement.addEventListener("themechange", this.redraw);
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    this.sizes.disconnect();
    this.themes.removeEventListener("change", this.redraw);
    document.documentElement.removeEventListener("themechange", this.redraw);
  }

  firstUpdated() {
    this.sizes.observe(this.area);
  }

  get area() {
    return /** @type {HTMLElement} */ (this.renderRoot.querySelector(".lanes"));
  }

  /** @returns {[number, number]} */
  get span() {
    return this.view ?? [0, Math.max(this.duration, 1)];
  }

  /** @param {number} seconds */
  #x(seconds) {
    const [from, to] = this.span;
    return ((seconds - from) / (to - from)) * this.width;
  }

  /** @param {number} x */
  #time(x) {
    const [from, to] = this.span;
    return Math.min(this.duration, Math.max(0, from + (x / Math.max(1, this.width)) * (to - from)));
  }

  /** @param {number} seconds */
  at(seconds) {
    this.now = seconds;
    const head = /** @type {HTMLElement | null} */ (this.renderRoot.querySelector(".head"));
    if (head) head.style.transform = `translateX(${this.#x(seconds)}px)`;
    const area = this.renderRoot.querySelector(".lanes");
    const text = time(seconds);
    if (area && area.getAttribute("aria-valuetext") !== text) {
      area.setAttribute("aria-valuenow", String(Math.round(seconds)));
      area.setAttribute("aria-valuetext", text);
    }
  }

  /** @param {import("lit").PropertyValues} changed */
  willUpdate(changed) {
    if (changed.has("scenes")) this.lanes = lanesOf(this.scenes);
    if (changed.has("duration")) this.view = null;
  }

  /** @param {import("lit").PropertyValues} changed */
  updated(changed) {
    if (["scenes", "view", "width", "duration"].some((name) => changed.has(name))) this.#draw();
    this.at(this.now);
  }

  /** Colours as they are now: a token's value depends on the theme. */
  #colours() {
    const probe = /** @type {HTMLElement} */ (this.renderRoot.querySelector(".probe"));
    const style = getComputedStyle(probe);
    return (/** @type {string} */ token) => {
      probe.style.color = `var(${token})`;
      return style.color;
    };
  }

  #draw() {
    const canvas = this.renderRoot.querySelector("canvas");
    const context = canvas?.getContext("2d");
    if (!canvas || !context || !this.width) return;
    const scale = devicePixelRatio || 1;
    const height = RULER_PX + ROW_PX * (this.lanes.length + 1);
    canvas.width = this.width * scale;
    canvas.height = height * scale;
    canvas.style.height = `${height}px`;
    context.scale(scale, scale);
    const colour = this.#colours();
    this.#ruler(context, colour, height);
    context.fillStyle = colour("--surface");
    context.fillRect(0, RULER_PX, this.width, ROW_PX);
    this.lanes.forEach((lane, index) => this.#lane(context, colour, lane, RULER_PX + ROW_PX * (index + 1)));
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {(token: string) => string} colour
   * @param {number} height
   */
  #ruler(context, colour, height) {
    const [from, to] = this.span;
    const room = 72;
    const step = STEPS_S.find((size) => (size / (to - from)) * this.width >= room) ?? STEPS_S[STEPS_S.length - 1];
    context.font = `12px ${getComputedStyle(this).fontFamily}`;
    context.textBaseline = "middle";
    for (let at = Math.ceil(from / step) * step; at <= to; at += step) {
      const x = Math.round(this.#x(at)) + 0.5;
      context.strokeStyle = colour("--line");
      context.beginPath();
      context.moveTo(x, RULER_PX - 6);
      context.lineTo(x, height);
      context.stroke();
      const text = time(at);
      const wide = context.measureText(text).width;
      context.fillStyle = colour("--ink-3");
      context.fillText(text, Math.min(Math.max(0, x - wide / 2), this.width - wide), 9);
    }
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {(token: string) => string} colour
   * @param {Lane} lane
   * @param {number} top
   */
  #lane(context, colour, lane, top) {
    const middle = top + ROW_PX / 2;
    context.fillStyle = colour(lane.kind === "person" ? "--ink-2" : lane.kind === "scenes" ? "--line-strong" : "--ink-3");
    for (const [from, to] of lane.spans) {
      const x = this.#x(from);
      const wide = this.#x(to) - x;
      if (x > this.width || x + wide < 0) continue;
      context.beginPath();
      if (lane.kind === "text") {
        context.arc(x, middle, 3.5, 0, 2 * Math.PI);
      } else if (lane.kind === "scenes") {
        context.roundRect(x + 1, middle - 3, Math.max(1, wide - 2), 6, 2);
      } else {
        context.roundRect(x, middle - BAR_PX / 2, Math.max(2, wide - 1), BAR_PX, 3);
      }
      context.fill();
    }
  }

  /** @param {number} seconds */
  #seek(seconds) {
    this.dispatchEvent(new CustomEvent("sf-seek", { detail: { time: seconds } }));
  }

  /** @param {PointerEvent} event */
  #place(event) {
    const frame = this.area.getBoundingClientRect();
    return Math.min(frame.width, Math.max(0, event.clientX - frame.left));
  }

  /** @param {PointerEvent} event */
  #down(event) {
    if (event.button || event.composedPath()[0] instanceof HTMLButtonElement) return;
    this.area.setPointerCapture(event.pointerId);
    const x = this.#place(event);
    this.drag = [x, x];
  }

  /** @param {PointerEvent} event */
  #move(event) {
    const x = this.#place(event);
    this.hover = event.pointerType === "mouse" || this.drag ? x : null;
    if (this.drag) this.drag = [this.drag[0], x];
  }

  /** @param {PointerEvent} event */
  #up(event) {
    const { drag } = this;
    this.drag = null;
    if (event.pointerType !== "mouse") this.hover = null;
    if (!drag) return;
    const [from, to] = drag[0] < drag[1] ? drag : [drag[1], drag[0]];
    if (to - from < DRAG_PX) {
      this.#seek(this.#time(to));
      return;
    }
    const span = /** @type {[number, number]} */ ([this.#time(from), this.#time(to)]);
    if (span[1] - span[0] >= LEAST_S) this.view = span;
  }

  #cancel() {
    this.drag = null;
    this.hover = null;
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.key === "Home") this.#seek(0);
    else if (event.key === "End") this.#seek(this.duration);
    else if (event.key === "+" || event.key === "=") this.#zoom(0.5);
    else if (event.key === "-") this.#zoom(2);
    else return;
    event.preventDefault();
  }

  /**
   * Show `factor` of the shown span around the playhead.
   * @param {number} factor
   */
  #zoom(factor) {
    const [from, to] = this.span;
    const wide = Math.max(LEAST_S, (to - from) * factor);
    if (wide >= this.duration) {
      this.view = null;
      return;
    }
    const start = Math.min(this.duration - wide, Math.max(0, this.now - wide / 2));
    this.view = [start, start + wide];
  }

  render() {
    return html`<div class="all">
      <div class="names">
        <span>${t("timeline.hits")}</span>
        ${this.lanes.map((lane) =>
          lane.href
            ? html`<a href=${lane.href} title=${lane.name}>${lane.name}</a>`
            : html`<span title=${lane.name}>${lane.name}</span>`,
        )}
      </div>
      <div
        class="lanes"
        role="slider"
        tabindex="0"
        aria-label=${t("timeline.label")}
        aria-valuemin="0"
        aria-valuemax=${Math.round(this.duration)}
        aria-valuenow="0"
        @pointerdown=${this.#down}
        @pointermove=${this.#move}
        @pointerup=${this.#up}
        @pointercancel=${this.#cancel}
        @pointerleave=${() => !this.drag && this.#cancel()}
        @dblclick=${() => (this.view = null)}
        @keydown=${this.#key}
      >
        <canvas height=${RULER_PX + ROW_PX * 4}></canvas>
        ${this.hover !== null ? html`<div class="line" ${placed({ transform: `translateX(${this.hover}px)` })}></div>` : ""}
        ${this.drag ? this.#dragged(this.drag) : ""}
        <div class="clip"><div class="inner"><div class="head"></div></div></div>
        ${this.hover !== null ? this.#peek(this.hover) : ""}
        <i class="probe"></i>
      </div>
      <div class="hits" role="group" aria-label=${t("timeline.hits")}>
        ${repeat(
          this.hits,
          (hit) => hit.scene_id,
          (hit) => this.#hit(hit),
        )}
      </div>
      ${this.view
        ? html`<button class="zoom" @click=${() => (this.view = null)}>${t("timeline.all")}</button>`
        : nothing}
    </div>`;
  }

  /** @param {SearchHit} hit */
  #hit(hit) {
    const x = this.#x(hit.start_s);
    const wide = this.#x(hit.end_s) - x;
    const strength = Math.max(0.2, strengthOf(hit, this.hits) ** 2).toFixed(2);
    return html`<button
      title=${time(hit.start_s)}
      aria-label=${t("timeline.hit", { time: time(hit.start_s) })}
      ?hidden=${x > this.width || x + wide < 0}
      ${placed({ left: `${x}px`, width: `${Math.max(24, wide)}px`, "--long": `${Math.max(6, wide - 2)}px`, "--strength": strength })}
      @click=${() => this.#seek(hit.start_s)}
    ></button>`;
  }

  /** @param {[number, number]} drag */
  #dragged([from, to]) {
    return html`<div
      class="drag"
      ${placed({ left: `${Math.min(from, to)}px`, width: `${Math.abs(to - from)}px` })}
    ></div>`;
  }

  /** @param {number} x */
  #peek(x) {
    const at = this.#time(x);
    const sprite = spriteAt(this.sprites, at);
    const half = (sprite?.width ?? 60) / 2;
    const left = Math.min(Math.max(x, half), Math.max(half, this.width - half));
    return html`<div class="peek" ${placed({ left: `${left}px` })}>
      ${sprite
        ? html`<i
            ${placed({
              width: `${sprite.width}px`,
              height: `${sprite.height}px`,
              "background-image": `url("${sprite.url}")`,
              "background-position": `-${sprite.x}px -${sprite.y}px`,
            })}
          ></i>`
        : ""}
      <span class="time">${time(at)}</span>
    </div>`;
  }
}

/**
 * How good a hit is beside the best one, 0..1.
 * @param {SearchHit} hit
 * @param {SearchHit[]} hits
 */
export function strengthOf(hit, hits) {
  const best = Math.max(...hits.map(({ score }) => score));
  return best > 0 ? Math.max(0, hit.score / best) : 1;
}

/**
 * Lanes below the hits: only those that have something.
 * @param {TimelineScene[]} scenes
 * @returns {Lane[]}
 */
export function lanesOf(scenes) {
  /** @type {Map<string, Lane>} */
  const people = new Map();
  for (const scene of scenes) {
    for (const { person_id, name, start_s, end_s } of scene.people) {
      const key = person_id ?? "";
      const lane = people.get(key) ?? {
        key: `person:${key}`,
        name: name ?? t("timeline.unknown"),
        href: person_id ? `/people/${person_id}` : "",
        spans: [],
        kind: "person",
      };
      lane.spans.push([start_s, end_s]);
      people.set(key, lane);
    }
  }
  const shown = (/** @type {Lane} */ lane) => lane.spans.reduce((sum, [from, to]) => sum + to - from, 0);
  /** @type {Lane[]} */
  const lanes = [
    { key: "scenes", name: t("timeline.scenes"), href: "", kind: "scenes", spans: scenes.map((s) => [s.start_s, s.end_s]) },
    {
      key: "speech",
      name: t("timeline.speech"),
      href: "",
      kind: "speech",
      spans: scenes.flatMap((scene) => scene.segments.map((s) => /** @type {[number, number]} */ ([s.start_s, s.end_s]))),
    },
    ...[...people.values()].sort((a, b) => shown(b) - shown(a)).slice(0, PEOPLE),
    {
      key: "text",
      name: t("timeline.text"),
      href: "",
      kind: "text",
      spans: scenes.flatMap((scene) => scene.screen.map((s) => /** @type {[number, number]} */ ([s.ts_s, s.ts_s]))),
    },
  ];
  return lanes.filter((lane) => lane.spans.length);
}

customElements.define("sf-timeline", SfTimeline);
