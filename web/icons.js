/**
 * The page's icons: strokes on a grid of 24, drawn with the text's colour. `icon(name)` is for the eye only; the control
 * around it carries the name that a screen reader says.
 */

import { svg, html } from "lit";

const SHAPES = {
  add: svg`<path d="M12 5v14M5 12h14"/>`,
  back: svg`<path d="M19 12H5m6-7-7 7 7 7"/>`,
  calendar: svg`<rect x="3.5" y="5" width="17" height="15.5" rx="2"/><path d="M3.5 10h17M8 2.5V6m8-3.5V6"/>`,
  captions: svg`<rect x="3" y="5" width="18" height="14" rx="2.5"/><path d="M10.5 10.6a2 2 0 1 0 0 2.8m6-2.8a2 2 0 1 0 0 2.8"/>`,
  check: svg`<path d="m5 12.5 4.5 4.5L19 7.5"/>`,
  clock: svg`<circle cx="12" cy="12" r="8.5"/><path d="M12 7v5l3.5 2"/>`,
  close: svg`<path d="m6 6 12 12M18 6 6 18"/>`,
  crop: svg`<path d="M4 8V5.5A1.5 1.5 0 0 1 5.5 4H8m8 0h2.5A1.5 1.5 0 0 1 20 5.5V8m0 8v2.5a1.5 1.5 0 0 1-1.5 1.5H16m-8 0H5.5A1.5 1.5 0 0 1 4 18.5V16"/><circle cx="11.5" cy="11.5" r="3"/><path d="m14 14 2.5 2.5"/>`,
  dark: svg`<path d="M20 14.5A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.5z"/>`,
  download: svg`<path d="M12 4v11m-5-4.5 5 5 5-5M5 20h14"/>`,
  edit: svg`<path d="M4 20h4L19.5 8.5a2.1 2.1 0 0 0-3-3L5 17z"/>`,
  film: svg`<rect x="3" y="5" width="18" height="14" rx="2"/><path d="M8 5v14m8-14v14M3 9.5h5m-5 5h5m8-5h5m-5 5h5"/>`,
  fleet: svg`<rect x="3.5" y="4" width="17" height="6.5" rx="2"/><rect x="3.5" y="13.5" width="17" height="6.5" rx="2"/><path d="M7 7.25h.01M7 16.75h.01M11 7.25h6M11 16.75h6"/>`,
  filter: svg`<path d="M4 7h16M7 12h10m-7 5h4"/>`,
  grid: svg`<rect x="4" y="4" width="6.5" height="6.5" rx="1.5"/><rect x="13.5" y="4" width="6.5" height="6.5" rx="1.5"/><rect x="4" y="13.5" width="6.5" height="6.5" rx="1.5"/><rect x="13.5" y="13.5" width="6.5" height="6.5" rx="1.5"/>`,
  help: svg`<circle cx="12" cy="12" r="8.5"/><path d="M9.5 9.5a2.5 2.5 0 1 1 3.6 2.2c-.700.4-1.100.9-1.1 1.8m0 3h.01"/>`,
  history: svg`<path d="M4 12a8 8 0 1 0 2.7-6L4 8.5M4 4v4.5h4.5M12 8v4.5l3 1.5"/>`,
  language: svg`<circle cx="12" cy="12" r="8.5"/><path d="M3.5 12h17M12 3.5c5 5.5 5 11.5 0 17-5-5.5-5-11.5 0-17z"/>`,
  leave: svg`<path d="M14 4.5H6.5a2 2 0 0 0-2 2v11a2 2 0 0 0 2 2H14M10 12h10.5m-4-4 4 4-4 4"/>`,
  library: svg`<rect x="3.5" y="7.5" width="17" height="12.5" rx="2"/><path d="M6 4.5h12m-8 6.8v5l4.5-2.5z"/>`,
  light: svg`<circle cx="12" cy="12" r="3.8"/><path d="M12 3v2m0 14v2M3 12h2m14 0h2M5.6 5.6 7 7m10 10 1.4 1.4M5.6 18.4 7 17M17 7l1.4-1.4"/>`,
  link: svg`<path d="M10 14a4 4 0 0 0 6 .4l3-3a4 4 0 0 0-5.7-5.7L12 7m2 3a4 4 0 0 0-6-.4l-3 3a4 4 0 0 0 5.7 5.7L12 17"/>`,
  list: svg`<path d="M9 6h11M9 12h11M9 18h11M4.5 6h.01M4.5 12h.01M4.5 18h.01"/>`,
  merge: svg`<path d="M6 4v3a5 5 0 0 0 5 5h8M6 20v-3a5 5 0 0 1 5-5m4-4 4 4-4 4"/>`,
  more: svg`<path d="M5.5 12h.01M12 12h.01M18.5 12h.01"/>`,
  next: svg`<path d="m9 5 7 7-7 7"/>`,
  pause: svg`<path d="M8.5 5v14m7-14v14"/>`,
  people: svg`<circle cx="9" cy="8.5" r="3.5"/><path d="M2.5 20a6.5 6.5 0 0 1 13 0M16 5.3a3.5 3.5 0 0 1 0 6.4m2 2.6a6.5 6.5 0 0 1 3.5 5.7"/>`,
  person: svg`<circle cx="12" cy="8" r="4"/><path d="M4.5 20.5a7.5 7.5 0 0 1 15 0"/>`,
  photo: svg`<rect x="3.5" y="4.5" width="17" height="15" rx="2"/><circle cx="9" cy="10" r="1.7"/><path d="m4 17 4.5-4 3.5 3 4-4.5 4.5 4.5"/>`,
  play: svg`<path d="M7 4.8v14.4L19 12z"/>`,
  previous: svg`<path d="m15 5-7 7 7 7"/>`,
  retry: svg`<path d="M20 12a8 8 0 1 1-2.6-5.9L20 8.5M20 4v4.5h-4.5"/>`,
  screen: svg`<path d="M5 7V5h14v2M12 5v14m-3 0h6"/>`,
  search: svg`<circle cx="10.8" cy="10.8" r="6.3"/><path d="m15.5 15.5 5 5"/>`,
  similar: svg`<rect x="3.5" y="7.5" width="12" height="12" rx="2"/><path d="M8 4.5h10.5a2 2 0 0 1 2 2V17"/>`,
  sound: svg`<path d="M4 9.5v5h3.5L12 18.5v-13L7.5 9.5zM15.5 9a4.2 4.2 0 0 1 0 6m2.5-8.5a7.8 7.8 0 0 1 0 11"/>`,
  speech: svg`<path d="M5 5h14a1.5 1.5 0 0 1 1.5 1.5v9A1.5 1.5 0 0 1 19 17h-7l-4.5 3.5V17H5a1.5 1.5 0 0 1-1.5-1.5v-9A1.5 1.5 0 0 1 5 5z"/>`,
  eye: svg`<path d="M2.5 12S6 5.5 12 5.5 21.5 12 21.5 12 18 18.5 12 18.5 2.5 12 2.5 12z"/><circle cx="12" cy="12" r="2.8"/>`,
  split: svg`<path d="M4 12h5m0 0c4 0 4-6 8-6h2M9 12c4 0 4 6 8 6h2m-2-15 3 3-3 3m0 6 3 3-3 3"/>`,
  stop: svg`<rect x="6.5" y="6.5" width="11" height="11" rx="1.5"/>`,
  trash: svg`<path d="M4.5 7h15M9.5 7V4.5h5V7M6.5 7l1 13h9l1-13M10.5 11v5.5m3-5.5v5.5"/>`,
  undo: svg`<path d="M8.5 5 4 9.5 8.5 14M4 9.5h10a5.5 5.5 0 0 1 0 11h-3"/>`,
  upload: svg`<path d="M12 16V5M7 9.5l5-5 5 5M5 20h14"/>`,
  user_check: svg`<circle cx="9.5" cy="8" r="4"/><path d="M2.5 20.5a7 7 0 0 1 12.5-4.3m1.5 1.3 2 2 3.5-4"/>`,
  warning: svg`<path d="M12 4 2.8 19.5h18.4zM12 10v4.5m0 2.5h.01"/>`,
};

/** @typedef {keyof typeof SHAPES} IconName */

/**
 * Draw an icon; `small` is 16 px instead of 20.
 * @param {IconName} name
 * @param {boolean} [small]
 */
export function icon(name, small = false) {
  return html`<svg class=${small ? "icon small" : "icon"} viewBox="0 0 24 24" aria-hidden="true">${SHAPES[name]}</svg>`;
}
