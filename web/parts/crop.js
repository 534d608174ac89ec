/**
 * sf-crop: a dialog with a picture or a paused frame, on which a box is drawn to search by what is in it.
 *
 * Properties: none. `open(source)` shows it, with an image or a video element.
 * Events: `sf-picture` (detail: {blob}, a JPEG) when the search is wanted.
 */

import { LitElement, css, html } from "lit";
import { controls } from "../controls.js";
import { icon } from "../icons.js";
import { placed } from "../placed.js";
import { t } from "../text.js";
import { toast } from "./toast.js";

/** A drag below this part of the picture's width is a click. */
const LEAST = 0.03;
const STEP = 0.02;
const QUALITY = 0.9;

/** @typedef {{x: number, y: number, width: number, height: number}} Area parts of the picture, 0..1 */

export class SfCrop extends LitElement {
  static properties = { area: { state: true } };

  static styles = [
    controls,
    css`
      dialog {
        width: min(960px, 100vw - 2 * var(--s4));
        max-width: none;
        padding: var(--s4);
        border: 1px solid var(--line);
        border-radius: var(--radius);
        background: var(--raised);
        color: var(--ink);
        box-shadow: var(--shadow);
      }
      dialog::backdrop {
        background: #000a;
      }
      header,
      footer {
        display: flex;
        align-items: center;
        justify-content: space-between;
        gap: var(--s2);
      }
      footer {
        flex-wrap: wrap;
        margin-top: var(--s3);
      }
      footer div {
        display: flex;
        flex-wrap: wrap;
        gap: var(--s2);
        margin-left: auto;
      }
      @media (max-width: 719px) {
        footer div,
        footer .button {
          flex: 1 1 100%;
        }
      }
      .sheet {
        display: grid;
        justify-items: center;
        margin-top: var(--s3);
      }
      .picture {
        position: relative;
        overflow: hidden;
        border-radius: var(--radius);
        cursor: crosshair;
        touch-action: none;
        line-height: 0;
      }
      canvas {
        max-width: 100%;
        max-height: min(64vh, 620px);
      }
      .area {
        position: absolute;
        border: 2px solid #fff;
        border-radius: 4px;
        box-shadow: 0 0 0 9999px #0009;
        pointer-events: none;
      }
    `,
  ];

  constructor() {
    super();
    /** @type {Area | null} */
    this.area = null;
    /** @type {{x: number, y: number} | null} */
    this.from = null;
  }

  /**
   * Show the source's picture.
   * @param {HTMLImageElement | HTMLVideoElement} source
   */
  async open(source) {
    await this.updateComplete;
    const film = source instanceof HTMLVideoElement;
    const canvas = this.canvas;
    canvas.width = film ? source.videoWidth : source.naturalWidth;
    canvas.height = film ? source.videoHeight : source.naturalHeight;
    canvas.getContext("2d")?.drawImage(source, 0, 0, canvas.width, canvas.height);
    this.area = null;
    this.dialog.showModal();
  }

  get canvas() {
    return /** @type {HTMLCanvasElement} */ (this.renderRoot.querySelector("canvas"));
  }

  get dialog() {
    return /** @type {HTMLDialogElement} */ (this.renderRoot.querySelector("dialog"));
  }

  /** @param {PointerEvent} event */
  #point(event) {
    const frame = this.canvas.getBoundingClientRect();
    const within = (/** @type {number} */ value) => Math.min(1, Math.max(0, value));
    return { x: within((event.clientX - frame.left) / frame.width), y: within((event.clientY - frame.top) / frame.height) };
  }

  /** @param {PointerEvent} event */
  #down(event) {
    if (event.button) return;
    /** @type {HTMLElement} */ (event.currentTarget).setPointerCapture(event.pointerId);
    this.from = this.#point(event);
    this.area = null;
  }

  /** @param {PointerEvent} event */
  #move(event) {
    if (!this.from) return;
    const to = this.#point(event);
    this.area = {
      x: Math.min(this.from.x, to.x),
      y: Math.min(this.from.y, to.y),
      width: Math.abs(to.x - this.from.x),
      height: Math.abs(to.y - this.from.y),
    };
  }

  #up() {
    this.from = null;
    if (this.area && (this.area.width < LEAST || this.area.height < LEAST)) this.area = null;
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!way) return;
    event.preventDefault();
    const area = this.area ?? { x: 0.25, y: 0.25, width: 0.5, height: 0.5 };
    const clamp = (/** @type {number} */ value, /** @type {number} */ most) => Math.min(most, Math.max(0, value));
    if (event.shiftKey) {
      this.area = {
        ...area,
        width: Math.max(LEAST, clamp(area.width + way[0] * STEP, 1 - area.x)),
        height: Math.max(LEAST, clamp(area.height + way[1] * STEP, 1 - area.y)),
      };
    } else {
      this.area = {
        ...area,
        x: clamp(area.x + way[0] * STEP, 1 - area.width),
        y: clamp(area.y + way[1] * STEP, 1 - area.height),
      };
    }
  }

  /** @param {Area} area */
  async #search({ x, y, width, height }) {
    const { canvas } = this;
    const cut = document.createElement("canvas");
    cut.width = Math.max(1, Math.round(width * canvas.width));
    cut.height = Math.max(1, Math.round(height * canvas.height));
    cut
      .getContext("2d")
      ?.drawImage(canvas, x * canvas.width, y * canvas.height, cut.width, cut.height, 0, 0, cut.width, cut.height);
    try {
      const blob = await new Promise((resolve) => cut.toBlob(resolve, "image/jpeg", QUALITY));
      if (!blob) throw new Error("no picture");
      this.dispatchEvent(new CustomEvent("sf-picture", { detail: { blob } }));
    } catch {
      // A picture of another origin that does not let pages read it.
      toast(t("crop.unreadable"), { kind: "bad" });
    }
    this.dialog.close();
  }

  render() {
    const { area } = this;
    const percent = (/** @type {number} */ value) => `${value * 100}%`;
    const box = area && { left: percent(area.x), top: percent(area.y), width: percent(area.width), height: percent(area.height) };
    return html`<dialog aria-labelledby="title">
      <header>
        <h2 id="title">${t("crop.title")}</h2>
        <button class="button quiet icon-only" aria-label=${t("action.close")} @click=${() => this.dialog.close()}>
          ${icon("close")}
        </button>
      </header>
      <p class="note">${t("crop.hint")}</p>
      <div class="sheet">
        <div
          class="picture"
          tabindex="0"
          role="application"
          aria-label=${t("crop.area")}
          @pointerdown=${this.#down}
          @pointermove=${this.#move}
          @pointerup=${this.#up}
          @pointercancel=${this.#up}
          @keydown=${this.#key}
        >
          <canvas></canvas>
          ${box ? html`<div class="area" ${placed(box)}></div>` : ""}
        </div>
      </div>
      <footer>
        <div>
          <button
            class=${area ? "button" : "button solid"}
            @click=${() => this.#search({ x: 0, y: 0, width: 1, height: 1 })}
          >
            ${t("crop.whole")}
          </button>
          <button
            class=${area ? "button solid" : "button"}
            ?disabled=${!area}
            @click=${() => area && this.#search(area)}
          >
            ${t("crop.box")}
          </button>
        </div>
      </footer>
    </dialog>`;
  }
}

customElements.define("sf-crop", SfCrop);
