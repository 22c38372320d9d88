(function () {
  "use strict";
  const SHOWN = 12;
  const page = document.currentScript.closest(".playground");
  const data = JSON.parse(page.querySelector(".pg-data").textContent);
  const find = (name) => page.querySelector("#pg-" + name);
  const numbers = (packed) => {
    const text = atob(packed.replace(/-/g, "+").replace(/_/g, "\u002f"));
    const view = new DataView(Uint8Array.from(text, (char) => char.charCodeAt(0)).buffer);
    return Array.from({ length: view.byteLength / 4 }, (_, place) => view.getFloat32(4 * place, true));
  };
  const percent = (mass) => (mass > 0 && mass < 0.00005 ? "<0.01" : (100 * mass).toFixed(2)) + " %";
  const sum = (values) => values.reduce((total, value) => total + value, 0);

  function element(name, text, className) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function bar(mass, longest) {
    const cell = element("td");
    const drawn = element("span", "", "pg-bar");
    drawn.style.width = (100 * mass) / longest + "%";
    drawn.setAttribute("aria-hidden", "true");
    cell.append(element("span", percent(mass)), drawn);
    return cell;
  }

  /* min(f_v / f_y, f_y / f_v): 1 for two zeros, 0 for a zero and another count */
  function closeness(one, other) {
    if (one === other) return 1;
    return Math.min(one, other) / Math.max(one, other);
  }

  /* The row R_y over the words with neighbours, Eq. 13 and 14, by falling mass. */
  function row(token, tau, beta) {
    const cosines = numbers(data.cosines[token]);
    const own = data.known.indexOf(token);
    const scores = cosines.map((cosine, place) =>
      data.counts ? cosine - beta * closeness(data.counts[place], data.counts[own]) : cosine);
    const largest = Math.max(...scores);
    const powers = scores.map((score) => Math.exp((score - largest) / tau));
    const total = sum(powers);
    const entries = powers.map((power, place) => ({ token: data.known[place], mass: power / total }));
    return entries.sort((one, other) => other.mass - one.mass);
  }

  /* What Tok makes of a row of which K entries are kept: masses of the entries, and of each other word. */
  function smoothed(entries, kept, tail) {
    const size = data.words.length;
    const mass = sum(entries.slice(0, kept).map((entry) => entry.mass));
    const others = size - kept;
    if (tail === "exact") return { mass, entries, each: 0 };
    const head = entries.slice(0, kept);
    if (tail === "renormalize") {
      return { mass, entries: head.map(({ token, mass: own }) => ({ token, mass: own / mass })), each: 0 };
    }
    return { mass, entries: head, each: others ? (1 - mass) / others : 0 };
  }

  function showWord() {
    const token = Number(find("word").value);
    const tau = JSON.parse(find("tau").dataset.values)[Number(find("tau").value)];
    const beta = Number(find("beta").value);
    const kept = Number(find("kept").value);
    const alpha = Number(find("alpha").value);
    const size = data.words.length;
    find("tau-value").textContent = tau;
    find("beta-value").textContent = beta.toFixed(2);
    find("kept-value").textContent = kept;
    find("alpha-value").textContent = alpha.toFixed(2);
    find("tau").setAttribute("aria-valuetext", tau);
    const found = smoothed(row(token, tau, beta), kept, find("tail").value);
    const masses = new Map(found.entries.map((entry) => [entry.token, entry.mass]));
    const tok = (other) => alpha * (masses.has(other) ? masses.get(other) : found.each) + (other === token ? 1 - alpha : 0);
    const even = (other) => alpha / size + (other === token ? 1 - alpha : 0);
    const shown = [token, ...found.entries.map((entry) => entry.token).filter((other) => other !== token)].slice(0, SHOWN);
    const lines = shown.map((other) => [data.words[other], tok(other), even(other)]);
    lines.push(["the other " + (size - shown.length) + " together",
      1 - sum(lines.map((line) => line[1])), 1 - sum(lines.map((line) => line[2]))]);
    const longest = Math.max(...lines.flatMap((line) => line.slice(1)));
    const body = find("target").tBodies[0];
    body.replaceChildren(...lines.map(([name, left, right], place) => {
      const made = element("tr", undefined, place === 0 ? "pg-truth" : place === lines.length - 1 ? "pg-rest" : "");
      const head = element("th", name);
      head.scope = "row";
      made.append(head, bar(Math.max(left, 0), longest), bar(Math.max(right, 0), longest));
      return made;
    }));
    const own = found.entries.find((entry) => entry.token === token);
    find("said").replaceChildren(
      "The row of ", element("b", data.words[token]), " keeps ", element("b", percent(found.mass)), " of its mass in ",
      element("b", String(kept)), kept === 1 ? " entry" : " entries", "; the word itself has ",
      element("b", percent(own ? own.mass : found.each)), " of it. Token smoothing gives the row alpha of the target; label ",
      "smoothing gives as much to all " + size + " words alike.");
  }

  /* Importance weights: softmax over the samples of reward / tau - log q; without q the samples stand for q exp(r / tau). */
  function weights(draw, reward, tau, divide) {
    if (!reward) return draw.distance.map(() => 1 / draw.distance.length);
    const scores = draw.rewards[reward].map((score, place) => score / tau - (divide ? draw.log_prob[place] : 0));
    const largest = Math.max(...scores);
    const powers = scores.map((score) => Math.exp(score - largest));
    return powers.map((power) => power / sum(powers));
  }

  function showSentence() {
    const draws = data.sentence.pools[find("pool").value];
    const slider = find("sentence-tau");
    const draw = draws[Number(slider.value)];
    const reward = find("reward").value;
    const tau = Number(find("reward-tau").value);
    find("sentence-tau-value").textContent = draw.tau;
    slider.setAttribute("aria-valuetext", draw.tau);
    find("reward-tau-value").textContent = tau.toFixed(2);
    const found = weights(draw, reward, tau, find("divide").checked);
    const longest = Math.max(...found);
    const body = find("samples").tBodies[0];
    body.replaceChildren(...draw.tokens.map((tokens, place) => {
      const made = element("tr");
      const head = element("th");
      head.scope = "row";
      tokens.forEach((token, at) => {
        const name = token === data.sentence.tokens[at] ? "span" : "mark";
        head.append(element(name, data.words[token]), " ");
      });
      made.append(head, element("td", String(draw.distance[place]), "pg-number"),
        element("td", reward ? (100 * draw.rewards[reward][place]).toFixed(1) : "–", "pg-number"),
        bar(found[place], longest));
      return made;
    }));
    const squares = sum(found.map((weight) => weight * weight));
    find("sentence-said").replaceChildren(
      "People wrote: ", element("b", data.sentence.tokens.map((token) => data.words[token]).join(" ")), ". On average ",
      element("b", (sum(draw.distance) / draw.distance.length).toFixed(2)), " of its ",
      String(data.sentence.tokens.length), " words are replaced; the samples weigh as much as ",
      element("b", (1 / squares).toFixed(2)), " equal ones.");
  }

  page.hidden = false;
  page.querySelectorAll("form").forEach((form) => form.addEventListener("submit", (event) => event.preventDefault()));
  ["word", "tau", "beta", "kept", "alpha", "tail"].forEach((name) => find(name).addEventListener("input", showWord));
  showWord();
  if (data.sentence) {
    ["pool", "sentence-tau", "reward", "reward-tau", "divide"].forEach((name) => find(name).addEventListener("input", showSentence));
    showSentence();
  }
})();
