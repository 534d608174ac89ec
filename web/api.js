/**
 * The client of the API: one function that asks, and what every request needs. A failure is a `Problem` with the sentence
 * that the API gave (application/problem+json); what failed for a while is asked again.
 */

const ROOT = "/api/v1";
/** Statuses after which the same question may be answered a moment later. */
const AWAY = new Set([502, 503, 504]);
const RETRIES = 3;

/** Told of every answer and every failure to get one: `{away: boolean, status: number}`, status 0 for a failure. */
export const traffic = new EventTarget();

/** A request that the API refused, or that did not reach it. `status` is 0 if it did not. */
export class Problem extends Error {
  /**
   * @param {string} title
   * @param {{detail?: string, status?: number, type?: string, retryAfter?: number}} [more]
   */
  constructor(title, more = {}) {
    super(more.detail || title);
    this.name = "Problem";
    this.title = title;
    this.detail = more.detail ?? "";
    this.status = more.status ?? 0;
    this.type = more.type ?? "about:blank";
    /** Seconds after which to ask again. */
    this.retryAfter = more.retryAfter ?? 0;
  }

  /** Whether the same request may succeed later. */
  get passing() {
    return this.status === 0 || AWAY.has(this.status);
  }
}

/**
 * @typedef {object} Options
 * @property {string} [method]
 * @property {Record<string, string | number | boolean | null | undefined | readonly (string | number)[]>} [query] empty values are left out, lists repeated
 * @property {unknown} [body] sent as JSON; a Blob as it is
 * @property {Record<string, string>} [headers]
 * @property {AbortSignal} [signal]
 * @property {boolean} [retry] ask again when the API is away: the default for GET
 */

/**
 * Ask the API, and return its answer.
 * @template T
 * @param {string} path below /api/v1
 * @param {Options} [options]
 * @returns {Promise<T>}
 * @throws {Problem}
 */
export async function ask(path, options = {}) {
  const { method = options.body === undefined ? "GET" : "POST", signal } = options;
  const retries = (options.retry ?? method === "GET") ? RETRIES : 0;
  for (let attempt = 0; ; attempt++) {
    try {
      return await once(path, method, options);
    } catch (error) {
      if (!(error instanceof Problem) || !error.passing || attempt >= retries) throw error;
      await pause(Math.max(error.retryAfter * 1000, 300 * 2 ** attempt), signal);
    }
  }
}

/**
 * @param {string} path
 * @param {string} method
 * @param {Options} options
 */
async function once(path, method, { query, body, headers = {}, signal }) {
  const blob = body instanceof Blob;
  let response;
  try {
    response = await fetch(address(path, query), {
      method,
      signal,
      headers: { ...(body === undefined || blob ? {} : { "Content-Type": "application/json" }), ...headers },
      body: body === undefined ? undefined : blob ? body : JSON.stringify(body),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    traffic.dispatchEvent(new CustomEvent("answer", { detail: { away: true, status: 0 } }));
    throw new Problem("The API cannot be reached");
  }
  const { status } = response;
  traffic.dispatchEvent(new CustomEvent("answer", { detail: { away: AWAY.has(status), status } }));
  if (!response.ok) throw await problem(response);
  if (response.status === 204) return null;
  const type = response.headers.get("Content-Type") ?? "";
  return type.includes("json") ? response.json() : response.text();
}

/** @param {Response} response */
async function problem(response) {
  /** @type {{title?: string, detail?: string, type?: string}} */
  let said = {};
  if ((response.headers.get("Content-Type") ?? "").includes("json")) said = await response.json().catch(() => ({}));
  return new Problem(said.title || response.statusText || String(response.status), {
    detail: typeof said.detail === "string" ? said.detail : "",
    status: response.status,
    type: said.type,
    retryAfter: Number(response.headers.get("Retry-After")) || 0,
  });
}

/**
 * @param {number} ms
 * @param {AbortSignal} [signal]
 * @returns {Promise<void>}
 */
export function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

/**
 * The address of something below /api/v1, for `ask`, a picture or a video.
 * @param {string} path
 * @param {Options["query"]} [query]
 */
export function address(path, query = {}) {
  const params = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") params.append(name, String(one));
    }
  }
  const text = params.toString();
  return ROOT + path + (text ? `?${text}` : "");
}

/**
 * The address of a stored picture.
 * @param {string} key
 */
export function picture(key) {
  return `${ROOT}/objects/${key.split("/").map(encodeURIComponent).join("/")}`;
}

/**
 * Store a picture to search by, and return its key.
 * @param {Blob} image jpeg, png or webp
 * @param {AbortSignal} [signal]
 * @returns {Promise<string>}
 */
export async function storePicture(image, signal) {
  /** @type {{storage_key: string}} */
  const { storage_key } = await ask("/pictures", {
    method: "PUT",
    body: image,
    headers: { "Content-Type": image.type },
    signal,
  });
  return storage_key;
}
