import js from "@eslint/js";
import globals from "globals";

export default [
  { ignores: ["vendor/", "node_modules/"] },
  js.configs.recommended,
  {
    files: ["**/*.js"],
    languageOptions: { ecmaVersion: 2024, sourceType: "module", globals: globals.browser },
    rules: {
      eqeqeq: "error",
      "no-var": "error",
      "prefer-const": "error",
      "no-eval": "error",
      "no-restricted-imports": [
        "error",
        { patterns: ["*unsafe-html*", "*unsafe-svg*", "*unsafe-mathml*"] },
      ],
      "no-restricted-properties": [
        "error",
        { property: "innerHTML", message: "Write a template: Lit escapes what it shows." },
        { property: "outerHTML", message: "Write a template: Lit escapes what it shows." },
        { property: "insertAdjacentHTML", message: "Write a template: Lit escapes what it shows." },
      ],
    },
  },
];
