/**
 * Places an element: `<div ${placed({ left: "10%" })}></div>`. It sets properties through the CSSOM, because the page's
 * security policy refuses style attributes, which Lit's own styleMap writes at first.
 */

import { noChange } from "lit";
import { Directive, directive } from "lit-html/directive.js";

class Placed extends Directive {
  /** @param {Record<string, string>} styles */
  render(styles) {
    return styles && noChange;
  }

  /**
   * @param {import("lit-html/directive.js").ElementPart} part
   * @param {[Record<string, string>]} values
   */
  update(part, [styles]) {
    const { style } = /** @type {HTMLElement} */ (part.element);
    for (const [name, value] of Object.entries(styles)) {
      if (style.getPropertyValue(name) !== value) style.setProperty(name, value);
    }
    return noChange;
  }
}

export const placed = directive(Placed);
