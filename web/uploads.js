/**
 * The uploads of this tab: several files at a time by tus, each paused, resumed and cancelled by itself. They go on while
 * other views are shown, and after a failure of the network or the API. What a reload interrupts is remembered with the
 * number of bytes that the API has; it continues when the same file is chosen again.
 */

import { address, ask } from "./api.js";
import { store, UPLOAD } from "./store.js";
import { bytes, t } from "./text.js";

/**
 * @typedef {object} Line One upload.
 * @property {string} id of the video that it becomes
 * @property {string} name
 * @property {number} size
 * @property {number} modified
 * @property {"queued" | "sending" | "paused" | "waiting" | "lost" | "refused" | "failed" | "done"} state `waiting`: for
 *   the connection; `lost`: for its file, after a reload; `refused`: by the page, before anything was sent
 * @property {number} sent
 * @property {number} rate bytes per second; 0: unknown
 * @property {string} reason why it was refused or failed
 * @property {string | null} url at the API
 * @property {File | null} file
 */

/** How many send at the same time. */
const AT_ONCE = 3;
/** So that little is sent twice after a failure, wherever a proxy keeps requests until they are complete. */
const CHUNK_BYTES = 64 * 2 ** 20;
const VIDEO = /\.(mp4|m4v|mov|mkv|webm|avi|mpe?g|m?ts|m2ts|wmv|flv|ogv|3gp|mxf)$/i;

/** @param {File} file */
export function isVideo(file) {
  return file.type.startsWith("video/") || VIDEO.test(file.name);
}

/** Emits `change`. */
class Uploads extends EventTarget {
  /** @type {Line[]} */
  lines = [];
  /** @type {Map<Line, any>} */
  #senders = new Map();
  /** @type {Map<Line, number>} Attempts since bytes arrived last. */
  #failures = new Map();
  /** @type {any} */
  #tus = null;

  constructor() {
    super();
    this.#restore();
    addEventListener("online", () => this.#wake());
    let { away, signedOut } = store;
    store.addEventListener("change", () => {
      if ((away && !store.away) || (signedOut && !store.signedOut)) this.#wake();
      ({ away, signedOut } = store);
      this.#clear();
    });
    addEventListener("beforeunload", (event) => {
      if (this.lines.some((line) => line.state === "sending")) event.preventDefault();
    });
  }

  /**
   * Upload files; one that was interrupted continues.
   * @param {Iterable<File>} files
   */
  add(files) {
    for (const file of files) {
      const same = this.lines.find(
        (line) => line.name === file.name && line.size === file.size && line.modified === file.lastModified,
      );
      if (same && same.state !== "lost" && same.state !== "refused") continue;
      if (same?.state === "refused") this.#drop(same);
      const line = same?.state === "lost" ? same : this.#create(file);
      line.file = file;
      line.reason = refusal(file);
      line.state = line.reason ? "refused" : "queued";
      if (line !== same) this.lines.push(line);
      if (line.state === "queued") this.#store(line);
    }
    this.#pump();
  }

  /** @param {Line} line */
  pause(line) {
    line.state = "paused";
    line.rate = 0;
    void this.#senders.get(line)?.abort();
    this.#pump();
  }

  /** @param {Line} line */
  resume(line) {
    this.#failures.delete(line);
    line.state = "queued";
    line.reason = "";
    this.#pump();
  }

  /**
   * Stop, and let the API remove what it has.
   * @param {Line} line
   */
  cancel(line) {
    void this.#senders.get(line)?.abort();
    if (line.url) {
      const headers = { "Tus-Resumable": "1.0.0" };
      fetch(line.url, { method: "DELETE", headers, keepalive: true }).catch(() => null);
    }
    this.#drop(line);
    this.#pump();
  }

  /** @param {File} file @returns {Line} */
  #create(file) {
    const { name, size, lastModified: modified } = file;
    const stem = name.replace(/\.[^.]*$/, "").normalize("NFKD").replace(/[^A-Za-z0-9_-]+/g, "-");
    const random = Array.from(crypto.getRandomValues(new Uint8Array(5)), (byte) => (byte % 36).toString(36)).join("");
    const id = `${stem.replace(/^-+|-+$/g, "").slice(0, 48) || "video"}-${random}`;
    return { id, name, size, modified, state: "queued", sent: 0, rate: 0, reason: "", url: null, file };
  }

  /** Start what may start. */
  #pump() {
    const sending = this.lines.filter((line) => line.state === "sending").length;
    for (const line of this.lines.filter(({ state }) => state === "queued").slice(0, AT_ONCE - sending)) {
      line.state = "sending";
      void this.#send(line);
    }
    this.#changed();
  }

  /** @param {Line} line */
  async #send(line) {
    try {
      this.#tus ??= await load();
    } catch {
      return this.#wait(line);
    }
    if (line.state !== "sending") return;
    const known = this.#senders.get(line);
    if (known) return known.start();
    let [seen, at] = [line.sent, performance.now()];
    const sender = new this.#tus.Upload(line.file, {
      endpoint: address("/uploads"),
      uploadUrl: line.url,
      metadata: { filename: line.name, video_id: line.id },
      chunkSize: CHUNK_BYTES,
      retryDelays: null,
      storeFingerprintForResuming: false,
      onUploadUrlAvailable: () => {
        line.url = sender.url;
        this.#store(line);
      },
      /** @param {number} sent */
      onProgress: (sent) => {
        const now = performance.now();
        if (sent > line.sent) this.#failures.delete(line);
        if (now - at > 500) {
          const rate = Math.max(0, (sent - seen) / (now - at)) * 1000;
          line.rate = line.rate ? 0.7 * line.rate + 0.3 * rate : rate;
          [seen, at] = [sent, now];
          this.#store(line);
        }
        line.sent = sent;
        this.#changed();
      },
      onSuccess: () => this.#done(line),
      /** @param {any} error */
      onError: (error) => void this.#fail(line, error),
    });
    this.#senders.set(line, sender);
    sender.start();
  }

  /** @param {Line} line */
  #done(line) {
    line.state = "done";
    line.sent = line.size;
    this.#forget(line);
    this.#pump();
    // The line goes when the list shows the video.
    void store.video(line.id);
    setTimeout(() => {
      if (this.lines.includes(line)) this.#drop(line);
    }, 8_000);
  }

  /**
   * @param {Line} line
   * @param {{originalRequest?: any, originalResponse?: any, message: string}} error
   */
  async #fail(line, error) {
    if (line.state !== "sending") return;
    const status = error.originalResponse?.getStatus() ?? 0;
    // An answer that got lost: the upload is complete, and the video has begun.
    if (status === 409 && (await ask(`/videos/${line.id}`).catch(() => null))) return this.#done(line);
    if (status === 401) store.refused();
    // With a known upload, 409 means another offset: the next attempt asks for it.
    const passing = status === 0 || status >= 500 || [401, 408, 423, 429].includes(status) || (status === 409 && line.url);
    if (passing) return this.#wait(line);
    line.state = "failed";
    line.rate = 0;
    line.reason = said(error.originalResponse?.getBody()) || t("upload.failed.other", { status });
    this.#senders.delete(line);
    this.#pump();
  }

  /** @param {Line} line */
  #wait(line) {
    if (line.state !== "sending") return;
    const failures = (this.#failures.get(line) ?? 0) + 1;
    this.#failures.set(line, failures);
    line.state = "waiting";
    line.rate = 0;
    setTimeout(() => this.#again(line), Math.min(15_000, 500 * 2 ** failures));
    this.#pump();
  }

  /** @param {Line} line */
  #again(line) {
    if (line.state !== "waiting" || store.signedOut) return;
    line.state = "queued";
    this.#pump();
  }

  #wake() {
    for (const line of this.lines) this.#again(line);
  }

  /** Take away the lines of videos that the store shows. */
  #clear() {
    for (const line of this.lines) if (line.state === "done" && store.videos.has(line.id)) this.#drop(line);
  }

  /** @param {Line} line */
  #drop(line) {
    this.lines = this.lines.filter((other) => other !== line);
    this.#senders.delete(line);
    this.#failures.delete(line);
    this.#forget(line);
    this.#changed();
  }

  /** @param {Line} line */
  #store(line) {
    const { id, name, size, modified, sent, url } = line;
    try {
      localStorage.setItem(UPLOAD + id, JSON.stringify({ id, name, size, modified, sent, url }));
    } catch {
      // Without storage an upload doesn't survive a reload.
    }
    void hold(id);
  }

  /** @param {Line} line */
  #forget(line) {
    try {
      localStorage.removeItem(UPLOAD + line.id);
    } catch {
      // Nothing was stored.
    }
    letGo(line.id);
  }

  #restore() {
    try {
      for (const key of Object.keys(localStorage)) {
        if (!key.startsWith(UPLOAD)) continue;
        const stored = JSON.parse(localStorage.getItem(key) ?? "{}");
        // One that another tab sends is its own.
        void hold(stored.id).then((free) => {
          if (!free || !localStorage.getItem(key)) return;
          this.lines.push({ ...stored, state: "lost", rate: 0, reason: "", file: null });
          this.#changed();
        });
      }
    } catch {
      // Without storage there is nothing to restore.
    }
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}

/**
 * Why a file can't be uploaded; empty if it can.
 * @param {File} file
 */
function refusal(file) {
  const most = store.me?.max_video_bytes;
  if (!isVideo(file)) return t("upload.refused.kind");
  if (!file.size) return t("upload.refused.empty");
  if (most && file.size > most) return t("upload.refused.size", { size: bytes(file.size), most: bytes(most) });
  return "";
}

/** @param {string | undefined} body of a refusal: problem+json */
function said(body) {
  try {
    const { detail, title } = JSON.parse(body ?? "");
    return String(detail || title || "");
  } catch {
    return "";
  }
}

/** @returns {Promise<any>} the library, which is loaded with the first upload */
async function load() {
  // @ts-ignore: it has no types, and exports by a global.
  await import("/vendor/tus-js-client/tus.min.js");
  return /** @type {any} */ (globalThis).tus;
}

/** @type {Map<string, () => void>} */
const held = new Map();

/**
 * Make an upload this tab's own; false if another tab's.
 * @param {string} id
 * @returns {Promise<boolean>}
 */
function hold(id) {
  if (held.has(id) || !navigator.locks) return Promise.resolve(true);
  return new Promise((resolve) => {
    void navigator.locks.request(UPLOAD + id, { ifAvailable: true }, (lock) => {
      resolve(lock !== null);
      return lock && new Promise((release) => held.set(id, () => release(undefined)));
    });
  });
}

/** @param {string} id */
function letGo(id) {
  held.get(id)?.();
  held.delete(id);
}

export const uploads = new Uploads();

/** Renders its host again after each change of the uploads, once a frame at most. */
export class WatchUploads {
  /** @param {import("lit").LitElement} host */
  constructor(host) {
    this.update = () => host.requestUpdate();
    host.addController(this);
  }
  hostConnected() {
    uploads.addEventListener("change", this.update);
  }
  hostDisconnected() {
    uploads.removeEventListener("change", this.update);
  }
}

/**
 * All files of a drop, also those in folders.
 * @param {DataTransfer} transfer
 * @returns {Promise<File[]>} files in folders only if they are videos
 */
export async function droppedFiles(transfer) {
  const entries = [...transfer.items].flatMap((item) => (item.kind === "file" ? (item.webkitGetAsEntry() ?? []) : []));
  if (!entries.length) return [...transfer.files];
  /** @type {File[]} */
  const files = [];
  for (const entry of entries) {
    const found = await filesOf(entry);
    files.push(...(entry.isDirectory ? found.filter(isVideo) : found));
  }
  return files;
}

/**
 * @param {FileSystemEntry} entry
 * @returns {Promise<File[]>}
 */
async function filesOf(entry) {
  if (entry.isFile) {
    const file = /** @type {FileSystemFileEntry} */ (entry);
    return new Promise((resolve) => file.file((found) => resolve([found]), () => resolve([])));
  }
  const reader = /** @type {FileSystemDirectoryEntry} */ (entry).createReader();
  const files = [];
  for (;;) {
    /** @type {FileSystemEntry[]} */
    const some = await new Promise((resolve) => reader.readEntries(resolve, () => resolve([])));
    if (!some.length) return files;
    for (const one of some) files.push(...(await filesOf(one)));
  }
}
