/**
 * Small pictures of a whole video: reads its WebVTT file, whose cues name a part of a sheet.
 */

import { address, ask } from "./api.js";

/** @typedef {{start_s: number, end_s: number, url: string, x: number, y: number, width: number, height: number}} Sprite */

const CUE = /((?:\d+:)?\d+:\d+\.\d+)\s+-->\s+((?:\d+:)?\d+:\d+\.\d+)[^\n]*\n\s*\S*?(\d+)\.jpg#xywh=(\d+),(\d+),(\d+),(\d+)/g;

/** @param {string} text as 00:01.000 or 01:00:01.000 */
function seconds(text) {
  return text.split(":").reduce((sum, part) => sum * 60 + Number(part), 0);
}

/**
 * @param {string} videoId
 * @param {AbortSignal} [signal]
 * @returns {Promise<Sprite[]>} in the order of time
 */
export async function readSprites(videoId, signal) {
  /** @type {string} */
  const text = await ask(`/videos/${videoId}/sprites.vtt`, { signal });
  return [...text.replaceAll("\r", "").matchAll(CUE)].map(([, start, end, sheet, ...box]) => {
    const [x, y, width, height] = box.map(Number);
    const url = address(`/videos/${videoId}/sprites/${sheet}.jpg`);
    return { start_s: seconds(start), end_s: seconds(end), url, x, y, width, height };
  });
}

/**
 * The sprite of a moment, null if there is none.
 * @param {Sprite[]} sprites
 * @param {number} at_s
 */
export function spriteAt(sprites, at_s) {
  let low = 0;
  let high = sprites.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (sprites[middle].start_s <= at_s) low = middle;
    else high = middle - 1;
  }
  return sprites[low] ?? null;
}
