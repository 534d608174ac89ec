/**
 * All text of the page, in English. Another language is a copy of this file. `{name}` is replaced by a value; a message
 * with plural forms is an object with the forms of Intl.PluralRules, chosen by `n`.
 */

export default {
  // The frame of all views.
  "app.name": "scenefleet",
  "app.skip": "Skip to the content",
  "app.nav": "Views",
  "app.search": "Search",
  "app.library": "Library",
  "app.people": "People",
  "app.fleet": "Fleet",
  "app.find": "Search all videos",
  "app.theme.light": "Use the light theme",
  "app.theme.dark": "Use the dark theme",
  "app.missing.title": "There is no such page",
  "app.missing.text": "The address {path} leads nowhere. The link may be incomplete.",
  "app.missing.home": "Go to search",
  "app.broken.title": "This view could not be loaded",
  "app.broken.text": "The API did not send its files. Reload the page when the connection is back.",
  "app.reload": "Reload",
  "away.api": "The API does not answer. What you see stays; new answers come when it is back.",
  "away.redis": "The fleet's message broker (Redis) does not answer. Nothing is lost; searches and uploads continue when it is back.",
  "away.storage": "The storage does not answer. Pictures and videos come back with it.",
  "away.search": "The search node is away. Searches are answered when it is back.",
  "away.back": "Everything answers again",
  "toast.close": "Close",
  "toast.region": "Messages",
  "text.now": "just now",
  "problem.passing": "The fleet does not answer at the moment. Try again shortly.",
  "action.retry": "Try again",
  "action.cancel": "Cancel",
  "action.close": "Close",
  "action.undo": "Undo",
};
