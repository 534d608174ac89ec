/**
 * sf-face: a face cut out of a stored picture, with some of what surrounds it.
 *
 * Properties: `src` (storage key of the picture), `box` (of the face, pixels of the picture), `ratio` (width by height),
 * `zoom` (share of the height that the face takes, 0 to 1), `label` (for screen readers; none: decoration).
 * Or `person`: its best face is found by itself.
 * Events: none.
 */

import { LitElement, css, html } from "lit";
import { picture } from "../api.js";
import { controls } from "../controls.js";
import { icon } from "../icons.js";
import { bestFace } from "../people.js";

const near = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      void (/** @type {SfFace} */ (target).load());
    }
  },
  { rootMargin: "400px" },
);

export class SfFace extends LitElement {
  static properties = {
    src: {},
    box: { attribute: false },
    person: { attribute: false },
    ratio: { type: Number },
    zoom: { type: Number },
    label: {},
    drawn: { state: true },
  };

  static styles = [
    controls,
    css`
      .frame {
        position: relative;
        display: grid;
        place-items: center;
        aspect-ratio: var(--ratio, 1);
        border-radius: var(--face-radius, var(--radius));
        overflow: hidden;
        background: var(--surface);
        color: var(--line-strong);
      }
      .frame > .icon {
        width: 36%;
        height: 36%;
        stroke-width: 1;
      }
      canvas {
        position: absolute;
        inset: 0;
        width: 100%;
        height: 100%;
      }
    `,
  ];

  constructor() {
    super();
    this.src = "";
    /** @type {import("../types.js").Box | null} */
    this.box = null;
    /** @type {import("../types.js").Person | null} */
    this.person = null;
    this.ratio = 1;
    this.zoom = 0.55;
    this.label = "";
    this.drawn = false;
    this.loaded = "";
  }

  connectedCallback() {
    super.connectedCallback();
    near.observe(this);
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    near.unobserve(this);
  }

  /** @param {import("lit").PropertyValues} changed */
  updated(changed) {
    const other = changed.has("src") || changed.has("box") || changed.has("person");
    if (other && this.loaded) void this.load();
  }

  async load() {
    const of = this.person
      ? `${this.person.person_id}/${this.person.scenes}/${this.person.good_photos}`
      : `${this.src}/${this.box}`;
    if (this.loaded === of) return;
    this.loaded = of;
    const found = this.person ? await bestFace(this.person) : this.box && { key: this.src, box: this.box };
    if (this.loaded !== of) return;
    if (!found) {
      this.drawn = false;
      return;
    }
    const image = new Image();
    image.src = picture(found.key);
    try {
      await image.decode();
    } catch {
      this.loaded = "";
      return;
    }
    if (this.loaded !== of || !this.isConnected) return;
    this.#draw(image, found.box);
  }

  /**
   * @param {HTMLImageElement} image
   * @param {import("../types.js").Box} box
   */
  #draw(image, [x, y, width, height]) {
    const canvas = /** @type {HTMLCanvasElement} */ (this.renderRoot.querySelector("canvas"));
    const { naturalWidth: w, naturalHeight: h } = image;
    // The cut keeps the ratio, holds the face in its upper middle, and stays inside the picture.
    const cutHeight = Math.min(Math.max(width, height) / this.zoom, h, w / this.ratio);
    const cutWidth = cutHeight * this.ratio;
    const left = Math.min(Math.max(0, x + width / 2 - cutWidth / 2), w - cutWidth);
    const top = Math.min(Math.max(0, y + height / 2 - cutHeight * 0.47), h - cutHeight);
    const shown = canvas.getBoundingClientRect();
    const wide = Math.max(1, Math.round(shown.width * Math.min(2, devicePixelRatio)));
    canvas.width = wide;
    canvas.height = Math.round(wide / this.ratio);
    const context = canvas.getContext("2d");
    if (!context) return;
    context.imageSmoothingQuality = "high";
    context.drawImage(image, left, top, cutWidth, cutHeight, 0, 0, canvas.width, canvas.height);
    this.drawn = true;
  }

  render() {
    return html`<div
      class="frame"
      role=${this.label ? "img" : "presentation"}
      aria-label=${this.label}
      .style=${`--ratio: ${this.ratio}`}
    >
      ${this.drawn ? "" : icon("person")}
      <canvas aria-hidden="true"></canvas>
    </div>`;
  }
}

customElements.define("sf-face", SfFace);
