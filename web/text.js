/**
 * Texts as a reader sees them: messages, times, dates, sizes. All words come from the file of messages.
 */

import messages from "./messages.en.js";

const LOCALE = document.documentElement.lang || "en";
const plurals = new Intl.PluralRules(LOCALE);
const numbers = new Intl.NumberFormat(LOCALE);
const lists = new Intl.ListFormat(LOCALE, { type: "conjunction" });
const languages = new Intl.DisplayNames([LOCALE], { type: "language" });

/** @typedef {keyof typeof messages} MessageKey */
/** @typedef {Record<string, string | number>} MessageValues */

/**
 * Return a message with its values; of a message with plural forms the one for `n`.
 * @param {MessageKey} key
 * @param {MessageValues} [values]
 * @returns {string}
 */
export function t(key, values = {}) {
  const found = /** @type {string | Record<string, string>} */ (messages[key]);
  const form = typeof found === "string" ? found : (found[plurals.select(Number(values.n))] ?? found.other);
  return form.replace(/\{(\w+)\}/g, (whole, name) => {
    const value = values[name];
    return value === undefined ? whole : typeof value === "number" ? numbers.format(value) : value;
  });
}

/**
 * Whether there is a message of this key: for keys that are made of data, such as a state.
 * @param {string} key
 * @returns {key is MessageKey}
 */
export function known(key) {
  return Object.hasOwn(messages, key);
}

/**
 * A time of a video as 0:26 or 1:02:03.
 * @param {number} seconds
 * @returns {string}
 */
export function time(seconds) {
  const whole = Math.max(0, Math.floor(seconds + 1e-6));
  const s = String(whole % 60).padStart(2, "0");
  const m = Math.floor(whole / 60) % 60;
  const h = Math.floor(whole / 3600);
  return h ? `${h}:${String(m).padStart(2, "0")}:${s}` : `${m}:${s}`;
}

/**
 * Read a time as people type it: 90, 1:30, 1:02:03; null if it is none.
 * @param {string} typed
 * @returns {number | null}
 */
export function parseTime(typed) {
  const text = typed.trim();
  if (!/^\d+(\.\d+)?$|^\d+(:[0-5]?\d){1,2}(\.\d+)?$/.test(text)) return null;
  return text.split(":").reduce((sum, part) => sum * 60 + Number(part), 0);
}

/**
 * A date in the reader's locale; `withTime` adds hours and minutes.
 * @param {string | Date} when
 * @param {boolean} [withTime]
 * @returns {string}
 */
export function date(when, withTime = false) {
  return new Intl.DateTimeFormat(undefined, {
    dateStyle: "medium",
    ...(withTime ? { timeStyle: "short" } : {}),
  }).format(new Date(when));
}

/**
 * How long ago, in the largest unit that fits: "3 minutes ago".
 * @param {string | Date} when
 * @returns {string}
 */
export function ago(when) {
  const seconds = (new Date(when).getTime() - Date.now()) / 1000;
  const format = new Intl.RelativeTimeFormat(LOCALE, { numeric: "auto" });
  /** @type {[Intl.RelativeTimeFormatUnit, number][]} */
  const units = [
    ["year", 31_557_600],
    ["month", 2_629_800],
    ["day", 86_400],
    ["hour", 3_600],
    ["minute", 60],
  ];
  for (const [unit, size] of units) if (Math.abs(seconds) >= size) return format.format(Math.round(seconds / size), unit);
  return t("text.now");
}

/**
 * How long something takes or has taken, in one unit or two: "40 s", "3 min", "2 h 10 min", "5 d".
 * @param {number} seconds
 * @returns {string}
 */
export function duration(seconds) {
  if (seconds < 60) return t("text.s", { n: Math.round(seconds) });
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return t("text.min", { n: minutes });
  const hours = Math.floor(minutes / 60);
  if (hours >= 48) return t("text.d", { n: Math.round(hours / 24) });
  return minutes % 60 && hours < 10 ? t("text.h_min", { h: hours, n: minutes % 60 }) : t("text.h", { n: hours });
}

/**
 * A size in MB, or GB from 1000 MB.
 * @param {number} size
 * @returns {string}
 */
export function bytes(size) {
  const mb = size / 1e6;
  const shown = mb >= 1000 ? mb / 1000 : mb;
  const rounded = shown.toLocaleString(LOCALE, { maximumFractionDigits: shown < 10 ? 1 : 0 });
  return `${rounded} ${mb >= 1000 ? "GB" : "MB"}`;
}

/**
 * A similarity from 0 to 1, two digits.
 * @param {number} value
 * @returns {string}
 */
export function similarity(value) {
  return value.toLocaleString(LOCALE, { minimumFractionDigits: 2, maximumFractionDigits: 2 });
}

/** @param {number} value */
export function number(value) {
  return numbers.format(value);
}

/** @param {string[]} parts */
export function list(parts) {
  return lists.format(parts);
}

/**
 * A language's name from its code.
 * @param {string} code
 * @returns {string}
 */
export function language(code) {
  try {
    return languages.of(code) ?? code;
  } catch {
    return code;
  }
}

/**
 * A video's name: its file's, without folder and extension.
 * @param {{video_id: string, storage_key?: string}} video
 * @returns {string}
 */
export function videoName(video) {
  const file = (video.storage_key ?? "").split("/").pop() ?? "";
  return file.replace(/\.[A-Za-z0-9]{1,5}$/, "").replace(/[_]+/g, " ").trim() || video.video_id;
}
