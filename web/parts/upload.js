/**
 * sf-upload: the uploads of this tab, one line each: how far, how fast, how long still; pause, resume, cancel.
 *
 * Properties: none; it reads `uploads`.
 * Events: `choose`, when a file is asked for again after a reload.
 */

import { LitElement, css, html, nothing } from "lit";
import { repeat } from "lit/directives/repeat.js";
import { controls } from "../controls.js";
import { icon } from "../icons.js";
import { bytes, duration, t } from "../text.js";
import { uploads, WatchUploads } from "../uploads.js";

/** @typedef {import("../uploads.js").Line} Line */

/** @param {Line} line */
function words(line) {
  const much = { sent: bytes(line.sent), size: bytes(line.size) };
  switch (line.state) {
    case "refused":
    case "failed":
      return line.reason;
    case "queued":
      return t("upload.queued", much);
    case "paused":
      return t("upload.paused", much);
    case "waiting":
      return t("upload.waiting", much);
    case "lost":
      return t("upload.lost", much);
    case "done":
      return t("upload.done");
    default:
      return line.rate
        ? t("upload.sending", { ...much, rate: bytes(line.rate), left: t("upload.left", { time: duration((line.size - line.sent) / line.rate) }) })
        : t("upload.begun", much);
  }
}

export class SfUpload extends LitElement {
  static styles = [
    controls,
    css`
      section {
        border: 1px solid var(--line);
        border-radius: 12px;
        background: var(--surface);
        padding: var(--s2) var(--s2) var(--s2) var(--s4);
      }
      .top {
        display: flex;
        align-items: center;
        gap: var(--s2);
        min-height: var(--target);
      }
      h2 {
        font-size: var(--text-m);
        margin-right: auto;
      }
      li {
        display: grid;
        grid-template-columns: minmax(0, 1fr) auto;
        align-items: center;
        column-gap: var(--s3);
        padding: var(--s1) 0;
        border-top: 1px solid var(--line);
      }
      .name {
        font-size: var(--text-s);
        font-weight: var(--strong);
        overflow: hidden;
        text-overflow: ellipsis;
        white-space: nowrap;
      }
      .text {
        padding: var(--s2) 0;
        min-width: 0;
      }
      .bar {
        height: 4px;
        margin: 6px 0;
        border-radius: 2px;
        background: var(--line);
        overflow: hidden;
      }
      .bar::after {
        content: "";
        display: block;
        height: 100%;
        border-radius: 2px;
        background: var(--ink-2);
        transform: scaleX(var(--share));
        transform-origin: left;
        transition: transform var(--quick);
      }
      .words {
        display: flex;
        gap: 6px;
        color: var(--ink-2);
        font-size: var(--text-xs);
        line-height: 16px;
      }
      .refused .words,
      .failed .words {
        color: var(--bad);
      }
      .paused .bar::after,
      .waiting .bar::after,
      .lost .bar::after {
        background: var(--line-strong);
      }
      .acts {
        display: flex;
      }
    `,
  ];

  constructor() {
    super();
    new WatchUploads(this);
  }

  render() {
    const { lines } = uploads;
    if (!lines.length) return nothing;
    const open = lines.filter(({ state }) => state !== "refused" && state !== "failed" && state !== "done").length;
    const may = lines.filter(({ state }) => state === "sending" || state === "queued" || state === "waiting");
    const held = lines.filter(({ state }) => state === "paused");
    return html`<section aria-label=${t("upload.title")}>
      <div class="top">
        <h2>${open ? t("upload.count", { n: open }) : t("upload.title")}</h2>
        ${may.length > 1
          ? html`<button class="button quiet" @click=${() => may.forEach((line) => uploads.pause(line))}>${t("upload.pause_all")}</button>`
          : held.length > 1
            ? html`<button class="button quiet" @click=${() => held.forEach((line) => uploads.resume(line))}>
                ${t("upload.resume_all")}
              </button>`
            : ""}
      </div>
      <ul>
        ${repeat(
          lines,
          (line) => line.id,
          (line) => this.#line(line),
        )}
      </ul>
    </section>`;
  }

  /** @param {Line} line */
  #line(line) {
    const { state, name } = line;
    const bad = state === "refused" || state === "failed";
    const share = line.size ? line.sent / line.size : 0;
    return html`<li class=${state} data-upload=${name}>
      <div class="text">
        <p class="name" title=${name}>${name}</p>
        ${state === "refused"
          ? ""
          : html`<div
              class="bar"
              role="progressbar"
              aria-label=${t("upload.bar", { name })}
              aria-valuenow=${Math.floor(share * 100)}
              .style=${`--share: ${share}`}
            ></div>`}
        <p class="words time">${bad ? icon("warning", true) : ""}${words(line)}</p>
      </div>
      <div class="acts">
        ${state === "sending" || state === "queued" || state === "waiting"
          ? this.#button("pause", t("upload.pause", { name }), () => uploads.pause(line))
          : state === "paused"
            ? this.#button("play", t("upload.resume", { name }), () => uploads.resume(line))
            : state === "failed"
              ? this.#button("retry", t("upload.again", { name }), () => uploads.resume(line))
              : state === "lost"
                ? html`<button class="button" @click=${() => this.dispatchEvent(new Event("choose"))}>${t("upload.choose")}</button>`
                : ""}
        ${state === "done"
          ? ""
          : this.#button("close", bad ? t("upload.dismiss", { name }) : t("upload.cancel", { name }), () => uploads.cancel(line))}
      </div>
    </li>`;
  }

  /**
   * @param {import("../icons.js").IconName} name
   * @param {string} label
   * @param {() => void} act
   */
  #button(name, label, act) {
    return html`<button class="button quiet icon-only" aria-label=${label} title=${label} @click=${act}>${icon(name)}</button>`;
  }
}

customElements.define("sf-upload", SfUpload);
