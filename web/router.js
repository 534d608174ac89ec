/**
 * Addresses: what is shown follows from the URL alone. A click on a link of the page changes the URL without a load, and
 * back restores what was seen, with its scroll position.
 */

/** Emits `change` after the URL has changed. */
export const router = new EventTarget();

/**
 * Go to a path of the page.
 * @param {string} path
 * @param {{replace?: boolean, state?: Record<string, unknown>}} [options] `state` is kept with the entry of the history
 */
export function navigate(path, { replace = false, state = {} } = {}) {
  if (replace) {
    history.replaceState({ ...history.state, ...state }, "", path);
  } else {
    remember();
    history.pushState(state, "", path);
  }
  router.dispatchEvent(new CustomEvent("change", { detail: { back: false, replace } }));
}

/** Keep the scroll position with the current entry. */
function remember() {
  history.replaceState({ ...history.state, y: scrollY }, "");
}

/** Follow clicks and the browser's history; called once. */
export function start() {
  history.scrollRestoration = "manual";
  addEventListener("popstate", () => {
    router.dispatchEvent(new CustomEvent("change", { detail: { back: true, replace: false } }));
  });
  addEventListener("pagehide", remember);
  addEventListener("click", (event) => {
    if (event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    const link = event.composedPath().find((node) => node instanceof HTMLAnchorElement);
    if (!(link instanceof HTMLAnchorElement) || link.target || link.hasAttribute("download")) return;
    if (link.origin !== location.origin || /^\/(api|docs)\//.test(link.pathname)) return;
    event.preventDefault();
    const { play } = link.dataset;
    navigate(link.pathname + link.search, { state: play === undefined ? {} : { play: true } });
  });
}
