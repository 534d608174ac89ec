/**
 * sf-app: the frame of all views: header, views by address, messages.
 *
 * Properties: none; what it shows follows from the URL (see VIEWS).
 * Events: none. A view gets `route` ({path, params, query, state, back}) before it is shown and with every change of the
 * URL, and sets the document's title. The search view is kept while others are shown, so that back is immediate.
 */

import { LitElement, css, html, nothing } from "lit";
import "./parts/banner.js";
import "./parts/sign-in.js";
import { controls } from "./controls.js";
import { icon } from "./icons.js";
import { navigate, router, start } from "./router.js";
import { toastError } from "./parts/toast.js";
import { store, Watch } from "./store.js";
import { t } from "./text.js";

/**
 * @typedef {object} Route
 * @property {string} path
 * @property {Record<string, string>} params the named parts of the path
 * @property {URLSearchParams} query
 * @property {Record<string, unknown>} state of the history's entry
 * @property {boolean} back whether the browser's history led here
 */

/** @typedef {HTMLElement & {route: Route}} View */

/** Path, element, its module, and the entry of the navigation that it belongs to. */
const VIEWS = [
  { path: /^\/$/, tag: "sf-search", module: "./parts/search.js", nav: "search", keep: true },
  { path: /^\/v\/(?<id>[\w-]{1,64})$/, tag: "sf-player", module: "./parts/player.js", nav: "search", keep: false },
  { path: /^\/library$/, tag: "sf-library", module: "./parts/library.js", nav: "library", keep: false },
  { path: /^\/people$/, tag: "sf-people", module: "./parts/people.js", nav: "people", keep: false },
  { path: /^\/people\/(?<id>[\w-]{1,64})$/, tag: "sf-person", module: "./parts/person.js", nav: "people", keep: false },
  { path: /^\/fleet$/, tag: "sf-fleet", module: "./parts/fleet.js", nav: "fleet", keep: false },
];

/** @type {{nav: string, href: string, icon: import("./icons.js").IconName, label: import("./text.js").MessageKey, operator?: boolean}[]} */
const NAV = [
  { nav: "search", href: "/", icon: "search", label: "app.search" },
  { nav: "library", href: "/library", icon: "library", label: "app.library" },
  { nav: "people", href: "/people", icon: "people", label: "app.people" },
  { nav: "fleet", href: "/fleet", icon: "fleet", label: "app.fleet", operator: true },
];

export class SfApp extends LitElement {
  static properties = { view: { state: true }, nav: { state: true }, dark: { state: true }, missing: { state: true } };

  static styles = [
    controls,
    css`
      :host {
        display: flex;
        flex-direction: column;
        min-height: 100vh;
        min-height: 100dvh;
        padding-bottom: calc(var(--tabs) + env(safe-area-inset-bottom));
      }
      .skip {
        position: fixed;
        z-index: 90;
        top: var(--s2);
        left: var(--s2);
      }
      .skip:not(:focus) {
        clip-path: inset(50%);
      }
      header {
        position: sticky;
        z-index: 30;
        top: 0;
        display: grid;
        grid-template-columns: minmax(340px, 1fr) minmax(0, 640px) minmax(340px, 1fr);
        align-items: center;
        gap: var(--s4);
        height: var(--header);
        padding: 0 max(var(--gutter), (100% - var(--width)) / 2);
        background: var(--ground);
        border-bottom: 1px solid var(--line);
      }
      .name {
        display: inline-flex;
        align-items: center;
        gap: var(--s2);
        min-height: var(--target);
        justify-self: start;
        font-weight: var(--strong);
        letter-spacing: -0.01em;
        text-decoration: none;
      }
      .name svg {
        width: 24px;
        height: 24px;
      }
      .name .tile {
        fill: var(--solid);
      }
      .name .rows {
        stroke: var(--on-solid);
        stroke-width: 2.5;
        stroke-linecap: round;
      }
      .name .at {
        fill: var(--hit);
      }
      form {
        position: relative;
      }
      form .icon {
        position: absolute;
        top: 10px;
        left: var(--s3);
        color: var(--ink-3);
      }
      form .field {
        width: 100%;
        padding-left: 40px;
        border-color: transparent;
        background: var(--surface);
      }
      form .field:hover {
        border-color: var(--line);
      }
      .right {
        display: flex;
        align-items: center;
        justify-self: end;
        gap: var(--s1);
      }
      nav {
        display: flex;
        gap: var(--s1);
      }
      nav a {
        display: inline-flex;
        align-items: center;
        gap: var(--s2);
        min-height: var(--target);
        padding: 0 var(--s3);
        border-radius: var(--radius);
        color: var(--ink-2);
        font-size: var(--text-s);
        font-weight: var(--strong);
        text-decoration: none;
        transition: background var(--quick);
      }
      nav a:hover {
        background: var(--hover);
      }
      nav a[aria-current] {
        color: var(--ink);
        background: var(--hover);
      }
      nav .icon {
        display: none;
      }
      main {
        flex: 1;
        display: flex;
        flex-direction: column;
        min-width: 0;
      }
      main:focus-visible {
        outline: none;
      }
      ::slotted(*) {
        flex: 1;
        min-width: 0;
      }
      .lost {
        display: grid;
        align-content: center;
        justify-items: start;
        gap: var(--s3);
        width: min(560px, 100%);
        margin: auto;
        padding: var(--s16) var(--gutter);
        color: var(--ink-2);
      }
      .lost h1 {
        color: var(--ink);
      }
      @media (max-width: 1023px) {
        header {
          grid-template-columns: auto minmax(0, 1fr) auto;
        }
      }
      @media (max-width: 719px) {
        header {
          gap: var(--s2);
        }
        .name span {
          display: none;
        }
        header.bare .name span {
          display: inline;
        }
        nav {
          position: fixed;
          z-index: 40;
          inset: auto 0 0 0;
          gap: 0;
          padding: 0 var(--s2) env(safe-area-inset-bottom);
          border-top: 1px solid var(--line);
          background: var(--ground);
        }
        nav a {
          flex: 1;
          flex-direction: column;
          justify-content: center;
          gap: 2px;
          min-height: var(--tabs);
          padding: 0;
          font-size: var(--text-xs);
          line-height: 16px;
        }
        nav a[aria-current],
        nav a:hover {
          background: none;
        }
        nav .icon {
          display: block;
        }
      }
    `,
  ];

  constructor() {
    super();
    new Watch(this);
    /** @type {View | null} */
    this.view = null;
    /** @type {Map<string, View>} */
    this.kept = new Map();
    this.nav = "";
    this.missing = /** @type {"path" | "module" | null} */ (null);
    this.shows = 0;
    this.signedOut = false;
    const { dataset } = document.documentElement; // the page's start has set the theme that was chosen
    const system = matchMedia("(prefers-color-scheme: dark)");
    this.dark = dataset.theme ? dataset.theme === "dark" : system.matches;
    system.addEventListener("change", () => {
      if (!dataset.theme) this.dark = system.matches;
    });
    router.addEventListener("change", (event) => void this.#show(/** @type {CustomEvent} */ (event).detail.back));
    start();
    store.start();
    void this.#show(false);
  }

  /** @param {import("lit").PropertyValues} changed */
  willUpdate(changed) {
    super.willUpdate(changed);
    if (this.signedOut === store.signedOut) return;
    this.signedOut = store.signedOut;
    if (this.signedOut) this.#leave();
    else void this.#show(false);
  }

  /** Take away all views: what they ask is refused. The address stays, for the return. */
  #leave() {
    this.shows++;
    for (const view of this.kept.values()) view.remove();
    this.view?.remove();
    this.kept.clear();
    this.view = null;
    this.early?.remove();
    document.title = t("sign_in.document");
  }

  /** @param {boolean} back */
  async #show(back) {
    if (this.signedOut) return;
    const turn = ++this.shows;
    const path = location.pathname.replace(/(.)\/$/, "$1");
    const entry = VIEWS.find((view) => view.path.test(path));
    this.nav = entry?.nav ?? "";
    this.missing = entry ? null : "path";
    if (!entry) return this.#place(null);
    /** @type {Route} */
    const route = {
      path,
      params: { ...entry.path.exec(path)?.groups },
      query: new URLSearchParams(location.search),
      state: history.state ?? {},
      back,
    };
    try {
      await import(entry.module);
    } catch {
      if (turn === this.shows) {
        this.missing = "module";
        this.#place(null);
      }
      return;
    }
    if (turn !== this.shows) return;
    const same = this.view?.localName === entry.tag;
    const view = same && this.view ? this.view : (this.kept.get(entry.tag) ?? this.#create(entry.tag));
    if (entry.keep) this.kept.set(entry.tag, view);
    view.route = route;
    this.#place(view);
    if (same && !back) return;
    await this.updateComplete;
    if ("updateComplete" in view) await view.updateComplete;
    this.#takeOver(view);
    if (back) requestAnimationFrame(() => scrollTo(0, Number(route.state.y) || 0));
    else scrollTo(0, 0);
  }

  /** @returns {HTMLFormElement | null} the box that index.html shows before the scripts have come */
  get early() {
    return this.querySelector(":scope > .early");
  }

  /**
   * Let the search view go on with what was typed before it came.
   * @param {View} view
   */
  #takeOver(view) {
    const { early } = this;
    if (!early) return;
    const box = /** @type {HTMLInputElement} */ (early.elements.namedItem("q"));
    const focused = document.activeElement === box;
    early.remove();
    if ("resume" in view) /** @type {import("./parts/search.js").SfSearch} */ (view).resume(box, focused, "asked" in early.dataset);
  }

  /** @param {string} tag */
  #create(tag) {
    return /** @type {View} */ (document.createElement(tag));
  }

  /** @param {View | null} view */
  #place(view) {
    if (this.view && this.view !== view) {
      if (this.kept.get(this.view.localName) === this.view) this.view.hidden = true;
      else this.view.remove();
    }
    if (view) {
      view.hidden = false;
      if (!view.isConnected) this.append(view);
    }
    this.view = view;
  }

  #theme() {
    this.dark = !this.dark;
    document.documentElement.dataset.theme = this.dark ? "dark" : "light";
    try {
      localStorage.setItem("theme", this.dark ? "dark" : "light");
    } catch {
      // Without storage the choice holds until the page is left.
    }
    document.documentElement.dispatchEvent(new Event("themechange"));
  }

  /** @param {SubmitEvent} event */
  #find(event) {
    event.preventDefault();
    const form = /** @type {HTMLFormElement} */ (event.currentTarget);
    const query = String(new FormData(form).get("q")).trim();
    navigate(query ? `/?q=${encodeURIComponent(query)}` : "/");
  }

  render() {
    const out = store.signedOut;
    const searching = out || location.pathname === "/";
    return html`
      <header class=${searching ? "bare" : ""}>
        <a class="skip button solid" href="#main" @click=${this.#skip}>${t("app.skip")}</a>
        <a class="name" href="/" aria-label=${t("app.name")}>
          <svg viewBox="0 0 32 32" aria-hidden="true">
            <rect class="tile" width="32" height="32" rx="8" />
            <path class="rows" d="M7 10.5h8M7 16h5M7 21.5h8" />
            <path class="at" d="M17 10.2v11.600L26 16z" />
          </svg>
          <span>${t("app.name")}</span>
        </a>
        ${searching
          ? html`<i></i>`
          : html`<form role="search" action="/" @submit=${this.#find}>
              ${icon("search")}
              <input
                class="field"
                type="search"
                name="q"
                enterkeyhint="search"
                autocomplete="off"
                maxlength="1000"
                aria-label=${t("app.find")}
                placeholder=${t("app.find")}
                .value=${new URLSearchParams(location.search).get("q") ?? ""}
              />
            </form>`}
        <div class="right">
          <nav aria-label=${t("app.nav")} ?hidden=${out}>
            ${NAV.filter((entry) => !entry.operator || store.me?.operator).map(
              (entry) =>
                html`<a href=${entry.href} aria-current=${this.nav === entry.nav ? "page" : nothing}>
                  ${icon(entry.icon)} ${t(entry.label)}
                </a>`,
            )}
          </nav>
          <button
            class="button quiet icon-only"
            aria-label=${t(this.dark ? "app.theme.light" : "app.theme.dark")}
            @click=${this.#theme}
          >
            ${icon(this.dark ? "light" : "dark")}
          </button>
          ${["key", "oidc"].includes(store.me?.how ?? "") && !out
            ? html`<button
                class="button quiet icon-only"
                aria-label=${t("app.sign_out")}
                title=${t("app.sign_out")}
                @click=${this.#signOut}
              >
                ${icon("leave")}
              </button>`
            : ""}
        </div>
      </header>
      <sf-banner></sf-banner>
      <main id="main" tabindex="-1">
        ${out ? html`<sf-sign-in></sf-sign-in>` : this.missing ? this.#lost() : html`<slot></slot>`}
      </main>
      <sf-toast></sf-toast>
    `;
  }

  async #signOut() {
    try {
      await store.signOut();
    } catch (error) {
      toastError(error);
    }
  }

  /** @param {Event} event */
  #skip(event) {
    event.preventDefault();
    this.renderRoot.querySelector("main")?.focus();
  }

  #lost() {
    return this.missing === "path"
      ? html`<div class="lost">
          <h1>${t("app.missing.title")}</h1>
          <p>${t("app.missing.text", { path: location.pathname })}</p>
          <a class="button solid" href="/">${t("app.missing.home")}</a>
        </div>`
      : html`<div class="lost">
          <h1>${t("app.broken.title")}</h1>
          <p>${t("app.broken.text")}</p>
          <button class="button solid" @click=${() => location.reload()}>${t("app.reload")}</button>
        </div>`;
  }
}

customElements.define("sf-app", SfApp);
