/**
 * sf-progress: the stages of a video as a thin bar of segments, and in words what is done, what runs, what waits for what.
 *
 * Properties: `video` (VideoStatus).
 * Events: none.
 */

import { LitElement, css, html, nothing } from "lit";
import { controls } from "../controls.js";
import { icon } from "../icons.js";
import { known, list, t } from "../text.js";

/** @typedef {import("../types.js").VideoStatus} VideoStatus */
/** @typedef {import("../types.js").StageStatus} StageStatus */

const ENDED = new Set(["done", "reused", "skipped", "failed", "cancelled"]);
const IN_WORK = new Set(["uploaded", "processing"]);

/** @param {VideoStatus} video */
export const inWork = (video) => IN_WORK.has(video.state);

/**
 * A stage's name; one of a plug-in has its own.
 * @param {string} stage
 */
export function stageName(stage) {
  const key = `stage.${stage}`;
  return known(key) ? t(key) : stage.replaceAll("_", " ");
}

/** @param {StageStatus} stage */
function share(stage) {
  return ENDED.has(stage.state) ? 1 : stage.state === "running" ? Math.max(0.04, stage.progress) : stage.progress;
}

/** @param {StageStatus} stage */
function how(stage) {
  const name = stageName(stage.stage);
  if (stage.parts > 1) return t("stage.parts", { stage: name, done: stage.parts_done, parts: stage.parts });
  const percent = Math.round(stage.progress * 100);
  return percent > 0 && percent < 100 ? t("stage.percent", { stage: name, percent }) : name;
}

/**
 * What happens to a video, in words.
 * @param {VideoStatus} video
 * @returns {string}
 */
export function inWords(video) {
  const named = (/** @type {string} */ state) => video.stages.filter((stage) => stage.state === state);
  if (inWork(video)) {
    const running = named("running");
    if (running.length) return running.map(how).join(" · ");
    const queued = named("queued").map((stage) => stageName(stage.stage));
    return queued.length ? t("stage.waits", { stages: list(queued) }) : t("stage.begins");
  }
  const failed = named("failed").map((stage) => stageName(stage.stage));
  if (failed.length) return t("stage.failed_at", { stages: list(failed) });
  const gaps = video.stages.filter((stage) => stage.not_looked_at).map((stage) => stageName(stage.stage));
  return gaps.length ? t("stage.gaps", { stages: list(gaps) }) : "";
}

export class SfProgress extends LitElement {
  static properties = { video: { attribute: false } };

  static styles = [
    controls,
    css`
      .line {
        display: flex;
        align-items: center;
        gap: var(--s2);
        min-height: 20px;
        font-size: var(--text-s);
        line-height: 20px;
      }
      .state {
        display: inline-flex;
        align-items: center;
        gap: 6px;
        font-weight: var(--strong);
        white-space: nowrap;
      }
      .indexed {
        color: var(--good);
      }
      .failed,
      .partial {
        color: var(--bad);
      }
      .percent {
        margin-left: auto;
        color: var(--ink-2);
      }
      .bar {
        display: flex;
        gap: 2px;
        margin: 6px 0;
      }
      .bar i {
        position: relative;
        flex: 1;
        height: 4px;
        border-radius: 2px;
        overflow: hidden;
        background: var(--line);
      }
      .bar i.long {
        flex: 2;
      }
      .bar i::after {
        content: "";
        position: absolute;
        inset: 0;
        background: var(--ink-2);
        transform: scaleX(var(--share));
        transform-origin: left;
        transition: transform var(--quick);
      }
      :host(.ended) .bar i::after {
        background: color-mix(in srgb, var(--line-strong) 60%, transparent);
      }
      .bar i.failed::after {
        background: var(--bad) !important;
      }
      .bar i.skipped::after,
      .bar i.cancelled::after {
        background: none !important;
      }
      .words {
        color: var(--ink-2);
        font-size: var(--text-xs);
        line-height: 16px;
        min-height: 16px;
        overflow-wrap: anywhere;
      }
    `,
  ];

  constructor() {
    super();
    /** @type {VideoStatus | null} */
    this.video = null;
  }

  render() {
    const video = this.video;
    if (!video) return nothing;
    const stages = video.stages;
    const working = inWork(video);
    this.classList.toggle("ended", !working);
    const counted = stages.filter(({ state }) => state !== "skipped");
    const percent = Math.round((counted.reduce((sum, stage) => sum + share(stage), 0) / (counted.length || 1)) * 100);
    const words = inWords(video);
    const mark = video.state === "indexed" ? "check" : working ? null : video.state === "cancelled" ? "stop" : "warning";
    return html`
      <div class="line">
        <span class="state ${video.state}">${mark ? icon(mark, true) : ""}${t(`state.${video.state}`)}</span>
        ${working && percent ? html`<span class="percent time">${t("text.percent", { percent })}</span>` : ""}
      </div>
      <div
        class="bar"
        role="progressbar"
        aria-label=${t("stage.bar")}
        aria-valuenow=${working ? percent : 100}
        aria-valuetext=${[t(`state.${video.state}`), words].filter(Boolean).join(". ")}
      >
        ${stages.map(
          (stage) =>
            html`<i
              class="${stage.state} ${stage.parts > 1 ? "long" : ""}"
              title=${t("stage.title", { stage: stageName(stage.stage), state: t(/** @type {any} */ (`stage_state.${stage.state}`)) })}
              .style=${`--share: ${share(stage)}`}
            ></i>`,
        )}
      </div>
      ${words ? html`<p class="words">${words}</p>` : ""}
    `;
  }
}

customElements.define("sf-progress", SfProgress);
