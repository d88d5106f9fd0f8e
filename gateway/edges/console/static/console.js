// Keeps a page up to date: the server says that something changed, and the page fetches itself and takes over what differs.
"use strict";

(() => {
  const region = document.querySelector("[data-live]");
  if (!document.body.hasAttribute("data-session") || !region) return;

  const said = document.getElementById("live");
  const say = (text) => { if (said.textContent !== text) said.textContent = text; };
  // Number of the last change that this page shows, by its own word: more may have happened before the stream was there.
  let shown = document.body.dataset.number;
  let wanted = null;     // number of the last change that the server told
  let fetching = false;

  const over = () => { location.assign("/login?next=" + encodeURIComponent(location.pathname)); };

  const refresh = async () => {
    if (fetching || document.hidden || wanted === shown) return;
    fetching = true;
    try {
      const answer = await fetch(location.href, { headers: { "X-Live": "1" }, cache: "no-store" });
      if (answer.status === 401) return over();
      if (!answer.ok) return;
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.querySelector("[data-live]");
      if (fresh && fresh.innerHTML !== region.innerHTML) {
        const place = document.activeElement && region.contains(document.activeElement)
          ? document.activeElement.getAttribute("href") : null;
        region.replaceChildren(...fresh.childNodes);
        if (place) region.querySelector(`a[href="${CSS.escape(place)}"]`)?.focus();
      }
      shown = page.body.dataset.number;
    } catch {
      // The gateway is away; the stream says so, and comes back.
    } finally {
      fetching = false;
      setTimeout(refresh, 2000);  // what changed meanwhile; at most every two seconds
    }
  };

  const stream = new EventSource("/live");
  // A stream ends after 25 s and the next one says hello: who hears nothing for longer shows what was.
  let silence = 0;
  let broken = false;    // the browser tries again and again, and each try that fails is an error of its own
  const expectWord = (milliseconds) => {
    clearTimeout(silence);
    silence = setTimeout(() => say("Not live: the gateway does not answer."), milliseconds);
  };
  const hear = (event) => {
    wanted = event.data;
    say("Live.");
    broken = false;
    expectWord(40000);
    refresh();
  };
  stream.addEventListener("hello", hear);
  stream.addEventListener("change", hear);
  stream.addEventListener("over", () => { stream.close(); over(); });
  stream.addEventListener("error", () => {
    if (stream.readyState === EventSource.CLOSED) {
      clearTimeout(silence);
      say("Not live: reload the page.");
    } else if (!broken) {
      broken = true;
      expectWord(5000);
    }
  });
  document.addEventListener("visibilitychange", refresh);
  setInterval(() => { if (!document.hidden) { shown = ""; refresh(); } }, 60000);  // ages grow although nothing happens
})();
