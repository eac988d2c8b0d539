"use strict";
// Draws the timeline and the table of steps from the JSON in the page. The page says everything without it, too.
// All texts become text nodes; the page's policy refuses markup that is made from a string.

// ---- Small things ----

const byId = (id) => document.getElementById(id);
const all = (selector) => document.querySelectorAll(selector);
const clamp = (value, least, most) => Math.max(least, Math.min(most, value));

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (name === "click") element.addEventListener("click", value);
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** The first index of a sorted array whose value is not below `value`. */
function lowerBound(sorted, value) {
  let low = 0, high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

// ---- Data: columns become arrays of bars; all attempts come first, then all waits ----

const OK = 0, FAILED = 1, RETRIED = 2, LIMITED = 3, INTERRUPTED = 4, RUNNING = 5, LIMIT = 6, BACKOFF = 7, KEY = 8;
const KINDS = [
  {paint: "ok", words: "succeeded"},
  {paint: "bad", words: "failed", sign: "✕"},
  {paint: "try", words: "failed, tried again", sign: "↻"},
  {paint: "lim", words: "met a usage limit"},
  {paint: "cut", words: "interrupted", sign: "†"},
  {paint: "run", words: "running"},
  {paint: "lim", words: "waiting for a usage limit"},
  {paint: "back", words: "waiting for the next attempt"},
  {paint: "key", words: "waiting for the key"},
  {paint: "key", words: "waiting for another process"},
];
const STATES = ["failed", "running", "waiting", "interrupted", "completed", "reset"];
const SIGNS = ["✕", "●", "◔", "†", "✓", "↺"];
const STEP_FAILED = 0, STEP_RUNNING = 1, STEP_WAITING = 2;

let data; // as the page has it
let attemptCount, barCount, stepCount;
let stepOf, begin, end, kind, worker, depth; // a value for each bar; times are milliseconds after data.start
let items; // of each step, its index in its batch, or -1; undefined: none has one
let first, last, worked, waited, tries, barsOf; // a value for each step

async function load() {
  const node = byId("data");
  if (node.type === "application/json") return JSON.parse(node.textContent);
  const bytes = Uint8Array.from(atob(node.textContent), (character) => character.charCodeAt(0));
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(unpacked).text());
}

function decode() {
  attemptCount = data.attempts.step.length;
  barCount = attemptCount + data.waits.step.length;
  stepCount = data.steps.state.length;
  [stepOf, kind, worker, depth] = [Int32Array, Uint8Array, Int32Array, Uint8Array].map((Type) => new Type(barCount));
  [begin, end] = [new Float64Array(barCount), new Float64Array(barCount)];
  decodeBars(data.attempts, 0);
  decodeBars(data.waits, attemptCount);
  let item = 0;
  items = data.steps.item?.map((difference) => (item += difference));
  summariseSteps();
}

function decodeBars(columns, offset) {
  let time = 0, step = 0; // begins and steps are differences to the bar before
  columns.step.forEach((difference, index) => {
    const bar = offset + index;
    step += difference;
    time += columns.begin[index];
    begin[bar] = time;
    end[bar] = time + columns.length[index];
    stepOf[bar] = step;
    kind[bar] = columns.kind[index];
    worker[bar] = columns.worker[index];
    depth[bar] = columns.depth ? columns.depth[index] : 0;
  });
}

function summariseSteps() {
  first = new Float64Array(stepCount).fill(Infinity);
  [last, worked, waited, tries] = Array.from({length: 4}, () => new Float64Array(stepCount));
  barsOf = Array.from({length: stepCount}, () => []);
  for (let bar = 0; bar < barCount; bar++) {
    const step = stepOf[bar], length = end[bar] - begin[bar];
    barsOf[step].push(bar);
    first[step] = Math.min(first[step], begin[bar]);
    last[step] = Math.max(last[step], end[bar]);
    if (isAttempt(bar)) {
      worked[step] += length;
      tries[step]++;
    } else waited[step] += length;
  }
  barsOf.forEach((bars, step) => {
    bars.sort((a, b) => begin[a] - begin[b] || a - b);
    if (!bars.length) first[step] = 0;
  });
}

const isAttempt = (bar) => bar < attemptCount;
const isOpen = (bar) => (isAttempt(bar) ? kind[bar] === RUNNING : data.waits.open && data.waits.open[bar - attemptCount]);
const nameOf = (step) => (data.steps.name ? data.steps.name[step] : `step ${numberOf(step)}`);
const numberOf = (step) => (data.steps.number ? data.steps.number[step] : step + 1);
const keyOf = (step) => (data.steps.key && data.steps.key[step] >= 0 ? data.keys[data.steps.key[step]] : null);
const costOf = (step) => (data.steps.cost ? data.steps.cost[step] : 0);
const attemptNumber = (bar) => data.attempts.number[bar];
const errorOf = (bar) => (isAttempt(bar) && data.attempts.error ? data.errors[data.attempts.error[bar]] : undefined);

function itemOf(step) {
  const item = items?.[step] ?? -1, total = data.totals[data.steps.batch?.[step]];
  return item < 0 ? null : `${item + 1}${total ? ` of ${total}` : ""}`;
}

function shortNameOf(step) {
  const name = nameOf(step), group = data.groups[data.steps.group[step]];
  return name.startsWith(`${group}:`) ? name.slice(group.length + 1) : name;
}

/** What a wait was for: the key of a limit or a mutex. */
const subjectOf = (bar) => data.texts[data.waits.subject[bar - attemptCount]];

/** Until when a wait lasts, and because of whom. */
function causeOf(bar) {
  if (isAttempt(bar)) return "";
  const until = data.waits.until[bar - attemptCount], by = data.texts[data.waits.by[bar - attemptCount]];
  const parts = [];
  if (until >= 0 && (kind[bar] === LIMIT || isOpen(bar))) parts.push(`until ${clock(until)}`);
  if (by) parts.push(`${kind[bar] === LIMIT ? "met first" : kind[bar] === KEY ? "held" : "run"} by ${by}`);
  return parts.join(", ");
}

function wordsOf(bar) {
  if (isAttempt(bar)) return `attempt ${attemptNumber(bar)}: ${KINDS[kind[bar]].words}`;
  return `${KINDS[kind[bar]].words} ${subjectOf(bar)}`.trim();
}

// ---- Numbers as words ----

const UNITS = [[86400, "d", 3600, "h"], [3600, "h", 60, "m"], [60, "m", 1, "s"]];

function duration(milliseconds) {
  const seconds = Math.max(0, milliseconds) / 1000;
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)}\u00a0ms`;
  if (seconds < 59.95) return `${seconds.toFixed(seconds < 9.995 ? 2 : 1)}\u00a0s`;
  const whole = Math.round(seconds), [size, unit, smallSize, smallUnit] = UNITS.find(([least]) => whole >= least);
  const rest = Math.floor((whole % size) / smallSize);
  return `${Math.floor(whole / size)}\u00a0${unit}\u00a0${rest}\u00a0${smallUnit}`;
}

const padded = (number, width = 2) => String(number).padStart(width, "0");
const dateAt = (time) => new Date(data.start + time + data.offset * 60000);
const day = (time) => dateAt(time).toISOString().slice(0, 10);
const money = (dollars) => (dollars ? `$${dollars.toFixed(dollars < 0.0995 ? 4 : 2)}` : "–");
const count = (number) => number.toLocaleString("en-US").replace(/,/g, "\u202f");

function clock(time, digits = 0) {
  const date = dateAt(time);
  const text = [date.getUTCHours(), date.getUTCMinutes(), date.getUTCSeconds()].map((part) => padded(part)).join(":");
  return digits ? `${text}.${padded(date.getUTCMilliseconds(), 3).slice(0, digits)}` : text;
}

// ---- Time and place: a place is a time without most of the squeezed stretches ----

const SQUEEZED = 0.035; // of the rest of the time is what a squeezed stretch gets

let isSqueezed = false, pieces = [], span = 0, extent = 1; // span is in time, extent in places
let placeBegin, placeEnd; // of each bar
let viewBegin = 0, viewEnd = 1; // the places that are in view

function layTime() {
  span = data.end - data.start || 1;
  const gaps = isSqueezed ? data.gaps : [];
  const squeezed = (span - gaps.reduce((sum, gap) => sum + gap.end - gap.begin, 0)) * SQUEEZED;
  pieces = [];
  extent = 0;
  let time = 0;
  const add = (until, length, isGap) => {
    pieces.push({begin: time, end: until, from: extent, to: extent + length, isGap});
    extent += length;
    time = until;
  };
  for (const gap of gaps) {
    if (gap.begin > time) add(gap.begin, gap.begin - time, false);
    add(gap.end, Math.max(1, squeezed), true);
  }
  if (time < span) add(span, span - time, false);
  placeBegin = begin.map(placeAt);
  placeEnd = end.map(placeAt);
}

function placeAt(time) {
  const piece = pieces.find((one) => time <= one.end);
  if (!piece) return extent;
  return piece.from + (Math.max(0, time - piece.begin) * (piece.to - piece.from)) / (piece.end - piece.begin || 1);
}

function timeAt(place) {
  const piece = pieces.find((one) => place <= one.to);
  if (!piece) return span;
  return piece.begin + (Math.max(0, place - piece.from) * (piece.end - piece.begin)) / (piece.to - piece.from || 1);
}

const isGapShown = (gap) => isSqueezed || gap.isWithoutProcess;

// ---- Lanes: a row for each worker, key or step ----

const TOP = 26; // pixels above the first lane: the clock
const HIGHEST = 460;

// A lane has its bars in order of their begins, and for each the latest end until then, so that the first bar in view is
// found by halving; and the places of its bars once more, side by side, since they are read for each frame.
let mode = "workers", lanes = [], laneHeight = 28;
let laneOf; // of each bar; -1 if it has none

const LANES = {
  /** Waits for keys hold no worker. */
  workers() {
    const found = Array.from({length: data.workers}, (_, index) => newLane(`worker ${index + 1}`));
    return [found, (bar) => (kind[bar] === KEY ? -1 : worker[bar]), data.workers > 24 ? 18 : 28];
  },
  keys() {
    const found = [], places = new Map();
    const place = (label) => {
      if (!places.has(label)) places.set(label, found.push(newLane(label)) - 1);
      return places.get(label);
    };
    return [found, (bar) => place(keyOf(stepOf[bar]) ?? `no key (${worker[bar] + 1})`), 26];
  },
  steps() {
    const shown = [];
    for (let step = 0; step < stepCount; step++) if (matches[step]) shown.push(step);
    shown.sort((a, b) => first[a] - first[b] || a - b);
    const places = new Int32Array(stepCount).fill(-1);
    shown.forEach((step, place) => (places[step] = place));
    const label = (step) => `${SIGNS[data.steps.state[step]]} ${nameOf(step)}`;
    return [shown.map((step) => newLane(label(step), step)), (bar) => places[stepOf[bar]], 20];
  },
};

const newLane = (label, step = null) => ({label, step, bars: [], latest: null, from: null, to: null});

function layLanes() {
  const [found, place, height] = LANES[mode]();
  const inOrder = Uint32Array.from({length: barCount}, (_, bar) => bar).sort((a, b) => begin[a] - begin[b] || a - b);
  laneOf = new Int32Array(barCount).fill(-1);
  for (const bar of inOrder) {
    laneOf[bar] = place(bar);
    if (laneOf[bar] >= 0) found[laneOf[bar]].bars.push(bar);
  }
  for (const lane of found) {
    let latest = -Infinity;
    lane.latest = Float64Array.from(lane.bars, (bar) => (latest = Math.max(latest, end[bar])));
  }
  [lanes, laneHeight] = [found, height];
  placeLanes();
  byId("space").style.height = `${lanes.length * laneHeight + TOP + 6}px`;
}

function placeLanes() {
  for (const lane of lanes) {
    lane.from = Float64Array.from(lane.bars, (bar) => placeBegin[bar]);
    lane.to = Float64Array.from(lane.bars, (bar) => placeEnd[bar]);
  }
}

// ---- Paint ----

const FONT = '11px system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif';
const HATCHED = ["try", "lim", "back", "key", "cut"];

let colour = {}, paint = {}; // paint: fill, edge, ink, and a picture of the hatching

function readColours() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(`--${name}`).trim();
  for (const name of ["bg", "card", "ink", "mute", "line", "gap", "focus"]) colour[name] = read(name);
  for (const {paint: name} of KINDS) {
    paint[name] = {fill: read(name), edge: read(`${name}-e`), ink: read(`${name}-t`)};
    if (HATCHED.includes(name)) paint[name].hatching = hatchingOf(paint[name]);
  }
}

function hatchingOf({fill, edge}) {
  const picture = make("canvas", {width: 12, height: 12}), context = picture.getContext("2d");
  context.fillStyle = fill;
  context.fillRect(0, 0, 12, 12);
  context.strokeStyle = edge;
  context.globalAlpha = 0.45;
  context.lineWidth = 2.2;
  for (const left of [-12, 0, 12]) {
    context.beginPath();
    context.moveTo(left, 12);
    context.lineTo(left + 12, 0);
    context.stroke();
  }
  return picture;
}

function fitted(canvas, cssHeight) {
  const ratio = devicePixelRatio || 1;
  const [pixelWidth, pixelHeight] = [Math.round(width * ratio), Math.round(cssHeight * ratio)];
  if (canvas.width !== pixelWidth || canvas.height !== pixelHeight) {
    [canvas.width, canvas.height] = [pixelWidth, pixelHeight];
    [canvas.style.width, canvas.style.height] = [`${width}px`, `${cssHeight}px`];
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, cssHeight);
  context.font = FONT;
  context.textBaseline = "middle";
  return context;
}

/** Call `draw` with a clipped context, and leave the context as it was. */
function clipped(context, x, y, w, h, draw) {
  context.save();
  context.beginPath();
  context.rect(x, y, w, h);
  context.clip();
  draw();
  context.restore();
}

function line(context, x0, y0, x1, y1) {
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
  context.stroke();
}

// ---- Drawing the lanes ----

const RIGHT = 8; // pixels that are free on the right
const THIN = 2.2; // pixels: what is thinner becomes a column of its pixel

let gantt, overview, scroller; // elements
let width = 0, height = 0, frame = 0;
let chosenBar = -1, chosenStep = -1;
let columns; // of the pixels of a lane: how much of each is covered by what

function laneStart() {
  if (mode === "steps") return clamp(width * 0.24, 120, 260);
  return mode === "keys" ? Math.min(150, width * 0.25) : Math.min(84, width * 0.2);
}

const scale = () => (width - laneStart() - RIGHT) / (viewEnd - viewBegin); // pixels a place
const xOf = (place) => laneStart() + (place - viewBegin) * scale();
const xAt = (time) => xOf(placeAt(time));
const placeUnder = (x) => viewBegin + (x - laneStart()) / scale();
const askToDraw = () => (frame ||= requestAnimationFrame(draw));

function draw() {
  frame = 0;
  width = byId("timeline").clientWidth;
  if (width === 0) return; // a frame that has no place in its page yet, or is hidden: it is drawn when it gets one
  height = Math.min(HIGHEST, lanes.length * laneHeight + TOP + 6);
  const context = fitted(gantt, height), left = laneStart();
  clipped(context, left, 0, width - left, height, () => {
    for (const gap of data.gaps.filter(isGapShown)) {
      context.fillStyle = colour.gap;
      context.fillRect(xAt(gap.begin), TOP, xAt(gap.end) - xAt(gap.begin), height);
    }
    drawClock(context, left);
  });
  const top = scroller.scrollTop;
  const upTo = Math.min(lanes.length, Math.ceil((top + height - TOP) / laneHeight));
  clipped(context, 0, TOP, width, height - TOP, () => {
    for (let index = Math.floor(top / laneHeight); index < upTo; index++) {
      drawLane(context, lanes[index], TOP + index * laneHeight - top, left);
    }
  });
  clipped(context, left, 0, width - left, height, () => {
    data.runs.forEach((run, index) => drawRun(context, run, index > 0));
    data.gaps.filter(isGapShown).forEach((gap) => drawGapName(context, gap, left));
  });
  drawOverview();
}

const TICKS = [
  1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 15e3, 3e4, 6e4, 12e4, 3e5, 6e5, 9e5, 18e5, 36e5, 72e5, 108e5,
  216e5, 432e5, 864e5,
];

/** The times to name, and the milliseconds between two of them. */
function ticks(left) {
  const pixels = width - left - RIGHT, wanted = ((viewEnd - viewBegin) * 110) / pixels;
  const between = TICKS.find((one) => one >= wanted) ?? 864e5 * Math.ceil(wanted / 864e5);
  const times = [];
  for (const piece of pieces) {
    const from = Math.max(piece.from, viewBegin), to = Math.min(piece.to, viewEnd);
    if (piece.isGap || from >= to) continue;
    const begun = timeAt(from), ended = timeAt(to);
    const zone = data.start + data.offset * 60000; // so that days begin at midnight
    for (let time = Math.ceil((begun + zone) / between) * between - zone; time <= ended; time += between) times.push(time);
  }
  return [times, between];
}

function drawClock(context, left) {
  const [times, between] = ticks(left);
  const digits = between < 10 ? 3 : between < 100 ? 2 : between < 1000 ? 1 : 0;
  let free = left - 8;
  context.textAlign = "center";
  context.strokeStyle = colour.line;
  context.fillStyle = colour.mute;
  for (const time of times) {
    const x = xAt(time), text = between >= 864e5 ? day(time).slice(5) : clock(time, digits);
    const half = context.measureText(text).width / 2;
    line(context, Math.round(x) + 0.5, TOP - 5, Math.round(x) + 0.5, height);
    if (x - half < free || x + half > width) continue;
    context.fillText(text, x, 12);
    free = x + half + 14;
  }
}

function drawRun(context, run, isResumed) {
  if (run.died) {
    const x = xAt(run.end);
    context.strokeStyle = paint.bad.fill;
    context.lineWidth = 2;
    context.setLineDash([5, 3]);
    line(context, x, TOP - 6, x, height);
    context.setLineDash([]);
    drawFlag(context, "† died", x, paint.bad.fill, paint.bad.ink, -1);
  }
  if (isResumed) {
    const x = xAt(run.begin);
    context.strokeStyle = paint.run.edge;
    context.lineWidth = 1.5;
    line(context, x, TOP - 6, x, height);
    drawFlag(context, run.isAfterDeath ? "resumed" : "next run", x, paint.run.edge, colour.card, 0);
  }
}

/** `side`: -1 to the left of x, 0 to the right, if there is room. */
function drawFlag(context, text, x, back, ink, side) {
  context.font = `600 ${FONT}`;
  const long = context.measureText(text).width + 10, left = side < 0 || x + long > width ? x - long : x;
  context.fillStyle = back;
  context.beginPath();
  context.roundRect(left, 16, long, 15, 3);
  context.fill();
  context.fillStyle = ink;
  context.textAlign = "left";
  context.fillText(text, left + 5, 24);
  context.font = FONT;
}

function drawGapName(context, gap, left) {
  const from = Math.max(left, xAt(gap.begin)), to = Math.min(width, xAt(gap.end));
  if (to - from < 9) return;
  const room = height - TOP - 6;
  const fits = (text) => context.measureText(text).width <= Math.max(to - from - 8, room);
  const text = fits(gap.words) ? gap.words : duration(gap.end - gap.begin);
  const long = context.measureText(text).width;
  context.save();
  context.translate((from + to) / 2, TOP + (height - TOP) / 2 - 4);
  if (long + 8 > to - from) context.rotate(-Math.PI / 2);
  context.textAlign = "center";
  context.fillStyle = colour.card;
  context.globalAlpha = 0.85;
  context.fillRect(-long / 2 - 3, -8, long + 6, 16);
  context.globalAlpha = 1;
  context.fillStyle = colour.mute;
  context.fillText(text, 0, 0);
  context.restore();
}

function drawLane(context, lane, y, left) {
  const barHeight = laneHeight - (laneHeight > 22 ? 8 : 5), barTop = y + (laneHeight - barHeight) / 2;
  context.strokeStyle = colour.line;
  context.lineWidth = 1;
  line(context, 0, Math.round(y + laneHeight) - 0.5, width, Math.round(y + laneHeight) - 0.5);
  clipped(context, 0, y, left - 8, laneHeight, () => {
    context.textAlign = "left";
    context.fillStyle = data.steps.state[lane.step] === STEP_FAILED ? paint.bad.edge : colour.ink;
    context.fillText(lane.label, 10, y + laneHeight / 2);
  });
  clipped(context, left, y, width - left, laneHeight, () => drawBars(context, lane, barTop, barHeight, left));
}

function drawBars(context, lane, y, barHeight, left) {
  const {bars, from, to} = lane, pixels = scale(), chosen = [];
  columns = newColumns();
  for (let index = lowerBound(lane.latest, timeAt(viewBegin)); index < bars.length; index++) {
    if (from[index] > viewEnd) break;
    if (to[index] < viewBegin) continue;
    const bar = bars[index], x0 = left + (from[index] - viewBegin) * pixels, x1 = left + (to[index] - viewBegin) * pixels;
    if (x1 - x0 < THIN && bar !== chosenBar) cover(bar, x0, x1);
    else drawBar(context, bar, x0, x1, y + depth[bar] * 3, barHeight - depth[bar] * 6);
    if (stepOf[bar] === chosenStep) chosen.push([bar, x0, x1]);
  }
  drawColumns(context, y, barHeight);
  for (const [bar, x0, x1] of chosen) {
    context.lineWidth = bar === chosenBar ? 2.5 : 1.5;
    context.strokeStyle = colour.focus;
    context.strokeRect(x0 - 1, y - 2, Math.max(4, x1 - x0 + 1), barHeight + 4);
  }
}

const isDimmed = (bar) => isFiltering && !matches[stepOf[bar]];

// Bars that are too thin to be seen: a column for each pixel, as dark as it is covered, with marks for what went wrong.

const SAW_FAILED = 1, SAW_RETRIED = 2, SAW_INTERRUPTED = 4;

function newColumns() {
  const ofPixels = () => new Float32Array(width + 2);
  return {worked: ofPixels(), limited: ofPixels(), paused: ofPixels(), dimmed: ofPixels(), saw: new Uint8Array(width + 2)};
}

function cover(bar, x0, x1) {
  const pixel = Math.floor(x0), much = Math.max(0.25, x1 - x0);
  if (pixel < 0 || pixel > width) return;
  if (isDimmed(bar)) columns.dimmed[pixel] += much;
  else if (kind[bar] === LIMITED || kind[bar] === LIMIT) columns.limited[pixel] += much;
  else if (!isAttempt(bar)) columns.paused[pixel] += much;
  else {
    columns.worked[pixel] += much;
    if (kind[bar] === FAILED) columns.saw[pixel] |= SAW_FAILED;
    else if (kind[bar] === RETRIED) columns.saw[pixel] |= SAW_RETRIED;
    else if (kind[bar] === INTERRUPTED) columns.saw[pixel] |= SAW_INTERRUPTED;
  }
}

function drawColumns(context, y, barHeight) {
  const {worked: work, limited, paused, dimmed, saw} = columns;
  for (let pixel = 0; pixel < saw.length; pixel++) {
    const [covered, fill] = work[pixel] ? [work[pixel], paint.ok.edge]
      : limited[pixel] ? [limited[pixel], paint.lim.edge]
      : paused[pixel] ? [paused[pixel], paint.back.edge]
      : [dimmed[pixel], paint.ok.edge];
    if (!covered) continue;
    context.globalAlpha = covered === dimmed[pixel] ? 0.1 : Math.min(0.75, 0.2 + 0.55 * covered);
    context.fillStyle = fill;
    context.fillRect(pixel, y, 1, barHeight);
  }
  context.globalAlpha = 1;
  for (let pixel = 0; pixel < saw.length; pixel++) {
    if (saw[pixel] & SAW_FAILED) {
      context.fillStyle = paint.bad.fill;
      context.fillRect(pixel - 0.5, y - 2, 2.5, barHeight + 4);
    } else if (saw[pixel]) {
      context.fillStyle = saw[pixel] & SAW_INTERRUPTED ? paint.cut.edge : paint.try.edge;
      context.fillRect(pixel - 0.5, y + barHeight - 5, 2, 5);
    }
  }
}

function drawBar(context, bar, x0, x1, y, barHeight) {
  const {fill, edge, hatching} = paint[KINDS[kind[bar]].paint];
  const wide = Math.max(2, x1 - x0 - (x1 - x0 > 6 ? 1 : 0)), radius = Math.min(3, wide / 2);
  if (kind[bar] === KEY) [y, barHeight] = [y + barHeight * 0.3, barHeight * 0.4];
  context.globalAlpha = isDimmed(bar) ? 0.15 : 1;
  if (wide < (kind[bar] === OK ? 9 : 5)) { // its edges would be most of it
    context.globalAlpha *= kind[bar] === OK ? 0.55 : 1;
    context.fillStyle = edge;
    context.fillRect(x0, y, wide, barHeight);
    context.globalAlpha = 1;
    return;
  }
  context.beginPath();
  context.roundRect(x0, y, wide, barHeight, isOpen(bar) ? [radius, 0, 0, radius] : radius);
  context.fillStyle = hatching ? hatchingAt(context, hatching, x0) : fill;
  context.fill();
  context.lineWidth = 1;
  context.strokeStyle = edge;
  context.stroke();
  if (kind[bar] === INTERRUPTED && wide > 5) drawTornEdge(context, x0 + wide + 1, y, barHeight);
  if (wide > (isAttempt(bar) ? (kind[bar] === OK ? 26 : 15) : 52)) drawBarText(context, bar, x0, wide, y, barHeight);
  context.globalAlpha = 1;
}

function hatchingAt(context, picture, x) {
  const pattern = context.createPattern(picture, "repeat");
  pattern.setTransform(new DOMMatrix([0.5, 0, 0, 0.5, x % 6, 0]));
  return pattern;
}

function drawTornEdge(context, x, y, barHeight) {
  context.fillStyle = colour.card;
  context.beginPath();
  for (let tooth = 0; tooth < 3; tooth++) {
    context.moveTo(x, y + (barHeight * tooth) / 3);
    context.lineTo(x - 5, y + (barHeight * (tooth + 0.5)) / 3);
    context.lineTo(x, y + (barHeight * (tooth + 1)) / 3);
  }
  context.fill();
}

function drawBarText(context, bar, x0, wide, y, barHeight) {
  const from = Math.max(x0, laneStart()), text = barText(bar, wide);
  const {fill, ink, hatching} = paint[KINDS[kind[bar]].paint];
  const dimming = isDimmed(bar) ? 0.15 : 1;
  clipped(context, from + 3, y, Math.min(x0 + wide, width) - from - 6, barHeight, () => {
    context.textAlign = "left";
    if (hatching) { // words on hatching need a ground
      context.globalAlpha = dimming * 0.88;
      context.fillStyle = fill;
      context.fillRect(from + 3, y + 1, context.measureText(text).width + 6, barHeight - 2);
    }
    context.globalAlpha = dimming;
    context.fillStyle = ink;
    context.fillText(text, from + 6, y + barHeight / 2 + 0.5);
  });
}

function barText(bar, wide) {
  if (kind[bar] === LIMIT) return `limit of ${subjectOf(bar)}`;
  if (kind[bar] === BACKOFF) return "back-off";
  if (kind[bar] === KEY) return `waits for key ${subjectOf(bar)}`;
  if (!isAttempt(bar)) return "waits for another process";
  const {sign} = KINDS[kind[bar]], name = mode === "steps" ? "" : shortNameOf(stepOf[bar]);
  if (!sign) return name;
  return wide < 44 ? sign : `${sign} ${name}`;
}

// ---- Overview: how many ran and waited at a time ----

const OVERVIEW_HEIGHT = 62, OVERVIEW_TOP = 24;

let overviewPicture = null; // it changes with the filter, the width and the colours, and not with the view

function countLevels() {
  const size = clamp(Math.floor(width) - 2 * RIGHT, 50, 1200), perPlace = size / extent;
  const found = {size, ran: new Float64Array(size), limited: new Float64Array(size), paused: new Float64Array(size)};
  found.failed = new Uint8Array(size);
  for (let bar = 0; bar < barCount; bar++) {
    if (isDimmed(bar) || kind[bar] === KEY || depth[bar]) continue;
    const levelsOfKind = isAttempt(bar) ? found.ran : kind[bar] === LIMIT ? found.limited : found.paused;
    const x0 = placeBegin[bar] * perPlace, x1 = Math.max(placeEnd[bar] * perPlace, x0 + 1e-6);
    for (let x = Math.floor(x0); x < Math.min(size, Math.ceil(x1)); x++) {
      levelsOfKind[x] += Math.min(x + 1, x1) - Math.max(x, x0);
    }
    if (kind[bar] === FAILED) found.failed[clamp(Math.floor(x0), 0, size - 1)] = 1;
  }
  found.most = found.ran.reduce((most, ran, x) => Math.max(most, ran + found.limited[x] + found.paused[x]), 1);
  return found;
}

function drawOverview() {
  overviewPicture ??= makeOverview();
  const context = fitted(overview, OVERVIEW_HEIGHT);
  context.drawImage(overviewPicture, 0, 0, width, OVERVIEW_HEIGHT);
  if (viewEnd - viewBegin < extent * 0.999) drawWindow(context);
}

function makeOverview() {
  const levels = countLevels(), picture = make("canvas"), context = fitted(picture, OVERVIEW_HEIGHT);
  const base = OVERVIEW_HEIGHT - 3;
  const wide = (width - 2 * RIGHT) / levels.size, high = (OVERVIEW_HEIGHT - OVERVIEW_TOP) / levels.most;
  const drawLevel = (level, x, from, fill, alpha) => {
    if (!level) return;
    context.fillStyle = fill;
    context.globalAlpha = alpha;
    context.fillRect(RIGHT + x * wide, base - (from + level) * high, wide + 0.4, level * high);
  };
  for (let x = 0; x < levels.size; x++) {
    const ran = levels.ran[x], limited = levels.limited[x];
    drawLevel(ran, x, 0, paint.ok.edge, 0.75);
    drawLevel(limited, x, ran, paint.lim.edge, 0.5);
    drawLevel(levels.paused[x], x, ran + limited, paint.back.edge, 0.5);
  }
  context.globalAlpha = 1;
  context.fillStyle = paint.bad.fill;
  levels.failed.forEach((failed, x) => {
    if (failed) context.fillRect(RIGHT + x * wide - 1, OVERVIEW_TOP - 4, 2.5, 6);
  });
  drawOverviewWords(context, levels.most);
  return picture;
}

function drawOverviewWords(context, most) {
  context.fillStyle = colour.mute;
  context.textAlign = "left";
  if (width > 640) {
    context.fillText(`at a time: running, and waiting for limits or their next attempt; ${Math.round(most)} at most`, RIGHT, 9);
  }
  context.textAlign = "right";
  const end = day(0) === day(span) ? clock(span) : `${day(span)} ${clock(span)}`;
  context.fillText(`${day(0)} ${clock(0)} – ${end} ${data.zone}`, width - RIGHT, 9);
}

function drawWindow(context) {
  const from = RIGHT + (viewBegin / extent) * (width - 2 * RIGHT), to = RIGHT + (viewEnd / extent) * (width - 2 * RIGHT);
  context.fillStyle = colour.bg;
  context.globalAlpha = 0.72;
  context.fillRect(0, 0, from, OVERVIEW_HEIGHT);
  context.fillRect(to, 0, width - to, OVERVIEW_HEIGHT);
  context.globalAlpha = 1;
  context.strokeStyle = colour.focus;
  context.lineWidth = 1.5;
  context.strokeRect(from, 1, Math.max(2, to - from), OVERVIEW_HEIGHT - 2);
}

// ---- What is in view ----

function setView(from, to) {
  const wide = clamp(to - from, Math.min(extent, 4), extent);
  viewBegin = clamp(from, 0, extent - wide);
  viewEnd = viewBegin + wide;
  askToDraw();
}

function zoom(factor, x = (laneStart() + width) / 2) {
  const place = placeUnder(x);
  setView(place - (place - viewBegin) * factor, place + (viewEnd - place) * factor);
}

function pan(part) {
  const by = (viewEnd - viewBegin) * part;
  setView(viewBegin + by, viewEnd + by);
}

const fitView = () => setView(0, extent);

function reveal(bar) {
  const wide = viewEnd - viewBegin;
  if (placeBegin[bar] < viewBegin || placeBegin[bar] > viewEnd) setView(placeBegin[bar] - wide / 3, placeBegin[bar] + wide);
  const y = laneOf[bar] * laneHeight;
  if (y < 0) return;
  const lowest = y + laneHeight + TOP - height;
  scroller.scrollTop = clamp(scroller.scrollTop, lowest, y);
}

// ---- Choosing a bar or a step ----

/** The bar at a point, or -1: the nearest within 3 pixels, the innermost where steps are nested, failures first. */
function barAt(x, y) {
  const lane = lanes[Math.floor((y - TOP + scroller.scrollTop) / laneHeight)];
  if (!lane || y < TOP || x < laneStart()) return -1;
  const time = timeAt(placeUnder(x)), slack = timeAt(placeUnder(x + 3)) - time;
  let best = -1, least = Infinity;
  for (let index = lowerBound(lane.latest, time - slack); index < lane.bars.length; index++) {
    const bar = lane.bars[index];
    if (begin[bar] > time + slack) break;
    const away = Math.max(0, begin[bar] - time, time - end[bar]);
    const rank = away - (kind[bar] === FAILED ? slack : 0) - depth[bar] * slack;
    if (away <= slack && rank < least) [best, least] = [bar, rank];
  }
  return best;
}

function choose(bar, {opens = true, reveals = true} = {}) {
  chosenBar = bar;
  chosenStep = bar < 0 ? -1 : stepOf[bar];
  if (bar >= 0) {
    byId("live").textContent = `${nameOf(chosenStep)}, ${wordsOf(bar)}, from ${clock(begin[bar])}, ${duration(end[bar] - begin[bar])}`;
    if (reveals) reveal(bar);
  }
  if (bar < 0 || opens) showDetails(chosenStep, bar);
  keepAddress();
  drawRows();
  askToDraw();
}

/** Choose the failure of a step, else its last bar. A step of an old record may have none. */
function chooseStep(step) {
  const bars = barsOf[step];
  if (bars.length) return choose(bars.find((bar) => kind[bar] === FAILED) ?? bars[bars.length - 1]);
  [chosenBar, chosenStep] = [-1, step];
  showDetails(step, -1);
  drawRows();
  return askToDraw();
}

function keepAddress() {
  try {
    history.replaceState(null, "", chosenStep < 0 ? "#" : `#s${numberOf(chosenStep)}`);
  } catch {
    // a frame without an address of its own
  }
}

function chooseFromAddress() {
  const found = /^#s(\d+)$/.exec(location.hash);
  if (!found) return;
  const number = Number(found[1]);
  const step = data.steps.number ? data.steps.number.indexOf(number) : number - 1;
  if (step >= 0 && step < stepCount) chooseStep(step);
}

// ---- Details of a step ----

function showDetails(step, bar) {
  const panel = byId("panel");
  panel.hidden = step < 0;
  panel.replaceChildren();
  if (step < 0) return;
  const close = make("button", {className: "close", type: "button", "aria-label": "Close details", click: closeDetails}, "×");
  panel.append(
    close,
    make("h2", {id: "panel-name"}, signOf(step), ` ${nameOf(step)}`),
    make("div", {className: "columns"}, factsOf(step), make("div", {className: "scroll"}, tableOf(step, bar)), textsOf(step)),
  );
}

function closeDetails() {
  choose(-1);
  gantt.focus({preventScroll: true});
}

function signOf(step) {
  const state = STATES[data.steps.state[step]];
  return make("span", {className: `sign ${state}`, role: "img", "aria-label": state}, SIGNS[data.steps.state[step]]);
}

function factsOf(step) {
  const detail = data.details[step] ?? {}, number = `#${numberOf(step)}`, isFailed = data.steps.state[step] === STEP_FAILED;
  const attempts = `${tries[step]} ${tries[step] === 1 ? "attempt" : "attempts"}`;
  const took = duration(last[step] - first[step]);
  const facts = [
    ["state", `${STATES[data.steps.state[step]]}, ${attempts}`],
    ["began", barsOf[step].length ? `${clock(first[step], 3)}, ${duration(first[step])} after the start` : null],
    ["took", waited[step] ? `${took}: ${duration(worked[step])} of work, ${duration(waited[step])} of waiting` : took],
    ["key", keyOf(step)],
    ["item", itemOf(step)],
    ...(detail.facts ?? []),
    ["number", number],
  ];
  const list = make("dl");
  for (const [name, value] of facts) if (value) list.append(make("dt", {}, name), make("dd", {}, value));
  return make("div", {}, list,
    copyable(`iso-orchestrator show ${data.shellId} '${number}'`),
    isFailed ? copyable(`iso-orchestrator reset ${data.shellId} '${number}'`) : null);
}

function tableOf(step, chosen) {
  const hasCosts = Boolean(data.attempts.cost);
  const head = ["#", "began", "took", "what", ...(hasCosts ? ["cost"] : [])].map((name) =>
    make("th", {className: name === "what" ? "" : "number"}, name));
  const rows = barsOf[step].map((bar) => {
    const cells = [isAttempt(bar) ? String(attemptNumber(bar)) : "", clock(begin[bar], 2), duration(end[bar] - begin[bar])];
    const row = make("tr", {"aria-selected": bar === chosen ? "true" : null},
      ...cells.map((text) => make("td", {className: "number"}, text)),
      make("td", {className: isAttempt(bar) ? "" : "mute"}, happeningOf(bar)));
    if (hasCosts) row.append(make("td", {className: "number"}, isAttempt(bar) ? money(data.attempts.cost[bar]) : ""));
    return row;
  });
  return make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
}

function happeningOf(bar) {
  if (!isAttempt(bar)) return [`${KINDS[kind[bar]].words} ${subjectOf(bar)}`.trim(), causeOf(bar)].filter(Boolean).join(", ");
  const allowed = data.attempts.allowed ? data.attempts.allowed[bar] : 0;
  return KINDS[kind[bar]].words + (allowed > 1 ? ` (of ${allowed})` : "");
}

/** Errors (equal ones once), the log's last words, the result and the log's path. */
function textsOf(step) {
  const detail = data.details[step] ?? {}, box = make("div");
  for (const [error, numbers] of errorsOf(step)) {
    box.append(
      make("h3", {}, `${numbers.length > 1 ? "Attempts" : "Attempt"} ${numbers.join(", ")}: ${error.name}`),
      make("p", {className: "mono"}, error.message));
    const open = data.steps.state[step] === STEP_FAILED && !detail.tail;
    if (error.stack) box.append(make("details", {open}, make("summary", {}, "Traceback"), make("pre", {}, error.stack)));
  }
  if (detail.tail) box.append(make("h3", {}, "Last words in its log"), make("pre", {}, detail.tail));
  if (detail.result) box.append(make("h3", {}, "Result"), make("pre", {}, detail.result));
  if (detail.log) box.append(make("h3", {}, "Log of the last attempt"), copyable(detail.log));
  return box;
}

/** The errors of a step, the last one first, each with the numbers of its attempts. */
function errorsOf(step) {
  const found = new Map();
  for (const bar of [...barsOf[step]].reverse()) {
    const error = errorOf(bar);
    if (!error) continue;
    const text = `${error.name}\n${error.message}`;
    if (!found.has(text)) found.set(text, [error, []]);
    found.get(text)[1].unshift(attemptNumber(bar));
  }
  return found.values();
}

function copyable(text) {
  const code = make("pre", {}, text);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    } catch {
      getSelection().selectAllChildren(code); // no clipboard for this page: Ctrl-C copies it
    }
  };
  const button = make("button", {type: "button", click: copy}, "Copy");
  return make("div", {className: "copy"}, code, button);
}

// ---- Table of the steps: only the rows in view are in the page ----

const ROW = 28, ROWS_HEIGHT = 400, ROWS_HEAD = 32; // pixels

const SORTS = {
  state: (step) => data.steps.state[step] * 1e15 + first[step],
  name: nameOf,
  began: (step) => first[step],
  took: (step) => last[step] - first[step],
  attempts: (step) => tries[step],
  waited: (step) => waited[step],
  cost: costOf,
  key: (step) => keyOf(step) ?? "\uffff",
};
const RISING = ["state", "name", "began", "key"]; // at the first click; the others begin with the largest

let order = [], sortName = "state", sortSign = 1;

function layRows() {
  const values = new Map(), value = SORTS[sortName];
  order = [];
  for (let step = 0; step < stepCount; step++) {
    if (!matches[step]) continue;
    order.push(step);
    values.set(step, value(step));
  }
  const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
  order.sort((a, b) => compare(values.get(a), values.get(b)) * sortSign || first[a] - first[b]);
  byId("tall").style.height = `${order.length * ROW}px`;
  byId("rows").setAttribute("aria-rowcount", order.length + 1);
  byId("count").textContent = isFiltering ? `${count(order.length)} of ${count(stepCount)} steps` : `${count(stepCount)} steps`;
  drawRows();
}

function drawRows() {
  const tall = byId("tall"), hadFocus = tall.contains(document.activeElement);
  const from = Math.max(0, Math.floor(byId("rows").scrollTop / ROW) - 6);
  const shown = order.slice(from, from + Math.ceil(ROWS_HEIGHT / ROW) + 14);
  tall.replaceChildren(...shown.map((step, index) => rowOf(step, from + index)));
  if (hadFocus) focusRow();
}

function focusRow() {
  const row = byId("tall").querySelector("[aria-selected=true]") ?? byId("tall").firstChild;
  row?.focus({preventScroll: true});
}

function rowOf(step, place) {
  const isChosen = step === chosenStep;
  const cell = (text) => make("span", {className: "number", role: "cell"}, text);
  const row = make("div",
    {
      className: "grid row",
      role: "row",
      tabIndex: isChosen || (chosenStep < 0 && place === 0) ? 0 : -1,
      "aria-rowindex": place + 2,
      "aria-selected": String(isChosen),
    },
    make("span", {role: "cell"}, signOf(step)),
    make("span", {role: "cell", title: nameOf(step)}, nameOf(step)),
    cell(clock(first[step])),
    cell(duration(last[step] - first[step])),
    cell(String(tries[step])),
    cell(waited[step] ? duration(waited[step]) : "–"),
    cell(money(costOf(step))),
    make("span", {role: "cell"}, keyOf(step) ?? "–"));
  row.style.top = `${place * ROW}px`;
  [row.dataset.step, row.dataset.place] = [step, place];
  return row;
}

function sortBy(name) {
  sortSign = name === sortName ? -sortSign : RISING.includes(name) ? 1 : -1;
  sortName = name;
  for (const button of all(".grid.head button")) {
    const direction = sortSign > 0 ? "ascending" : "descending";
    if (button.dataset.sort === name) button.parentElement.setAttribute("aria-sort", direction);
    else button.parentElement.removeAttribute("aria-sort");
  }
  byId("rows").scrollTop = 0;
  layRows();
}

const ROW_MOVES = {ArrowDown: 1, ArrowUp: -1, PageDown: 12, PageUp: -12, Home: -Infinity, End: Infinity};

function onRowKey(event) {
  const row = event.target.closest(".row");
  if (!row) return;
  if (event.key === "Enter" || event.key === " ") chooseStep(Number(row.dataset.step));
  else if (event.key in ROW_MOVES) moveToRow(clamp(Number(row.dataset.place) + ROW_MOVES[event.key], 0, order.length - 1));
  else return;
  event.preventDefault();
}

function moveToRow(place) {
  const box = byId("rows"), lowest = (place + 1) * ROW + ROWS_HEAD - ROWS_HEIGHT;
  box.scrollTop = clamp(box.scrollTop, lowest, place * ROW);
  [chosenBar, chosenStep] = [-1, order[place]];
  drawRows();
  focusRow();
  askToDraw();
}

// ---- Filter ----

const CHIPS = {
  all: () => true,
  failed: (step) => data.steps.state[step] === STEP_FAILED,
  retried: (step) => tries[step] > 1,
  waited: (step) => waited[step] > 0,
  interrupted: (step) => barsOf[step].some((bar) => kind[bar] === INTERRUPTED),
  open: (step) => [STEP_RUNNING, STEP_WAITING].includes(data.steps.state[step]),
};

let chip = "all", isFiltering = false;
let matches; // whether each step is to be shown
let searchTexts = null; // of each step, made at the first search: its name, key and errors

function makeSearchTexts() {
  return barsOf.map((bars, step) => {
    const errors = bars.map(errorOf).filter(Boolean).map((error) => `${error.name} ${error.message}`);
    return [nameOf(step), keyOf(step) ?? "", ...errors].join("\n").toLowerCase();
  });
}

function filter() {
  const words = byId("search").value.trim().toLowerCase(), group = Number(byId("group").value);
  isFiltering = words !== "" || chip !== "all" || group >= 0;
  if (words) searchTexts ??= makeSearchTexts();
  for (let step = 0; step < stepCount; step++) {
    const isWanted = CHIPS[chip](step) && (group < 0 || data.steps.group[step] === group);
    matches[step] = isWanted && (!words || searchTexts[step].includes(words)) ? 1 : 0;
  }
  overviewPicture = null;
  if (mode === "steps") layLanes();
  byId("rows").scrollTop = 0;
  layRows();
  askToDraw();
}

/** Mark one of the buttons that exclude each other, which have their names under `name` of their data. */
function press(name, value) {
  for (const button of all(`[data-${name}]`)) button.setAttribute("aria-pressed", String(button.dataset[name] === value));
}

function setChip(name) {
  chip = name;
  press("chip", name);
  filter();
}

function setMode(name) {
  mode = name;
  press("mode", name);
  scroller.scrollTop = 0;
  layLanes();
  draw();
  if (chosenBar >= 0) reveal(chosenBar);
}

function toggleSqueeze() {
  isSqueezed = !isSqueezed;
  byId("squeeze").setAttribute("aria-pressed", String(isSqueezed));
  layTime();
  placeLanes();
  overviewPicture = null;
  fitView();
}

// ---- Mouse ----

let drag = null; // where the pointer and the view were when the button went down

function onPointerMove(event) {
  if (drag) return moveView(event);
  const bar = barAt(event.offsetX, event.offsetY);
  byId("tip").hidden = bar < 0;
  if (bar >= 0) showTip(bar, event);
  return undefined;
}

function moveView(event) {
  if (Math.abs(event.offsetX - drag.x) <= 3 && !drag.isMoved) return;
  drag.isMoved = true;
  byId("tip").hidden = true;
  gantt.classList.add("dragged");
  const wide = viewEnd - viewBegin, from = drag.viewBegin - (event.offsetX - drag.x) / scale();
  setView(from, from + wide);
}

function showTip(bar, event) {
  const tip = byId("tip"), error = errorOf(bar);
  const lines = [wordsOf(bar), `${clock(begin[bar], 2)}, ${duration(end[bar] - begin[bar])}`, causeOf(bar), error?.message.slice(0, 160)];
  tip.replaceChildren(make("b", {}, nameOf(stepOf[bar])), ...lines.filter(Boolean).map((text) => make("div", {}, text)));
  const box = byId("timeline").getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
  const isRight = x + 14 + tip.offsetWidth <= width - 6, isBelow = y + 16 + tip.offsetHeight <= box.height - 4;
  tip.style.left = `${isRight ? x + 14 : Math.max(6, x - tip.offsetWidth - 10)}px`;
  tip.style.top = `${isBelow ? y + 16 : Math.max(2, y - tip.offsetHeight - 10)}px`;
}

function onPointerUp(event) {
  const isClick = drag && !drag.isMoved;
  drag = null;
  gantt.classList.remove("dragged");
  if (isClick) choose(barAt(event.offsetX, event.offsetY), {reveals: false});
}

function zoomToBar(event) {
  const bar = barAt(event.offsetX, event.offsetY);
  if (bar < 0) return fitView();
  const wide = Math.max(placeEnd[bar] - placeBegin[bar], extent / 1e5);
  return setView(placeBegin[bar] - wide * 0.6, placeEnd[bar] + wide * 0.6);
}

/** Ctrl zooms and Shift moves; the wheel alone scrolls the page. */
function onWheel(event) {
  const isSideways = event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
  if (event.ctrlKey || event.metaKey) zoom(Math.exp(clamp(event.deltaY, -60, 60) * 0.01), event.offsetX);
  else if (isSideways) pan((event.deltaX || event.deltaY) / width);
  else return;
  event.preventDefault();
}

/** Dragging over the overview zooms to what was dragged over, a click moves there. */
function onOverviewDown(event) {
  const placeOf = (x) => clamp(((x - RIGHT) / (width - 2 * RIGHT)) * extent, 0, extent);
  const from = placeOf(event.offsetX), least = extent * 0.003;
  const move = (later) => {
    const to = placeOf(later.offsetX);
    if (Math.abs(to - from) > least) setView(Math.min(from, to), Math.max(from, to));
  };
  const stop = (later) => {
    overview.removeEventListener("pointermove", move);
    const half = (viewEnd - viewBegin) / 2;
    if (Math.abs(placeOf(later.offsetX) - from) <= least) setView(from - half, from + half);
  };
  overview.setPointerCapture(event.pointerId);
  overview.addEventListener("pointermove", move);
  overview.addEventListener("pointerup", stop, {once: true});
}

// ---- Keys ----

function moveInLane(by) {
  const bars = lanes[Math.max(0, chosenBar < 0 ? 0 : laneOf[chosenBar])]?.bars ?? [];
  if (bars.length) chooseByKey(bars[clamp(bars.indexOf(chosenBar) + by, 0, bars.length - 1)]);
}

/** Go to the bar of the next lane that is nearest in time. */
function moveOverLanes(by) {
  if (chosenBar < 0) return moveInLane(1);
  let lane = laneOf[chosenBar] + by;
  while (lanes[lane] && !lanes[lane].bars.length) lane += by;
  if (!lanes[lane]) return undefined;
  const middle = (bar) => (begin[bar] + end[bar]) / 2, here = middle(chosenBar);
  const nearer = (a, b) => (Math.abs(middle(b) - here) < Math.abs(middle(a) - here) ? b : a);
  return chooseByKey(lanes[lane].bars.reduce(nearer));
}

const chooseByKey = (bar) => choose(bar, {opens: !byId("panel").hidden});

let failures = []; // all failed attempts, in order

function moveToFailure(by) {
  if (!failures.length) return;
  const place = failures.indexOf(chosenBar), from = place < 0 && by < 0 ? 0 : place;
  choose(failures[(from + by + failures.length) % failures.length]);
}

function openDetails() {
  if (chosenStep < 0) return;
  showDetails(chosenStep, chosenBar);
  byId("panel").focus();
}

const KEYS = {
  ArrowRight: (event) => (event.shiftKey ? pan(0.2) : moveInLane(1)),
  ArrowLeft: (event) => (event.shiftKey ? pan(-0.2) : moveInLane(-1)),
  ArrowDown: () => moveOverLanes(1),
  ArrowUp: () => moveOverLanes(-1),
  "+": () => zoom(0.6, chosenX()),
  "=": () => zoom(0.6, chosenX()),
  "-": () => zoom(1 / 0.6, chosenX()),
  0: fitView,
  f: () => moveToFailure(1),
  F: () => moveToFailure(-1),
  Enter: openDetails,
  Escape: () => choose(-1),
};

/** Where the chosen bar is, so that it stays in view; undefined: the middle. */
const chosenX = () => (chosenBar < 0 ? undefined : xOf((placeBegin[chosenBar] + placeEnd[chosenBar]) / 2));

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return;
  KEYS[event.key](event);
  event.preventDefault();
  event.stopPropagation();
}

function onPageKey(event) {
  if (event.key !== "/" || /INPUT|SELECT|TEXTAREA/.test(document.activeElement.tagName)) return;
  event.preventDefault();
  byId("search").focus();
}

// ---- Start ----

function listen() {
  const on = (element, listeners) => Object.entries(listeners).forEach(([name, call]) => element.addEventListener(name, call));
  on(gantt, {
    pointerdown(event) {
      drag = {x: event.offsetX, viewBegin, isMoved: false};
      gantt.setPointerCapture(event.pointerId);
    },
    pointermove: onPointerMove,
    pointerup: onPointerUp,
    pointerleave: () => (byId("tip").hidden = true),
    dblclick: zoomToBar,
    keydown: onKey,
  });
  gantt.addEventListener("wheel", onWheel, {passive: false});
  overview.addEventListener("pointerdown", onOverviewDown);
  scroller.addEventListener("scroll", askToDraw, {passive: true});
  on(byId("tall"), {keydown: onRowKey, click: (event) => chooseStep(Number(event.target.closest(".row").dataset.step))});
  byId("rows").addEventListener("scroll", drawRows, {passive: true});
  for (const button of all(".grid.head button")) on(button, {click: () => sortBy(button.dataset.sort)});
  for (const button of all("[data-chip]")) on(button, {click: () => setChip(button.dataset.chip)});
  for (const button of all("[data-mode]")) on(button, {click: () => setMode(button.dataset.mode)});
  for (const link of all("a[data-step]")) on(link, {click: (event) => followLink(event, link)});
  on(byId("search"), {input: filter});
  on(byId("group"), {change: filter});
  on(byId("zoom-out"), {click: () => zoom(1 / 0.6)});
  on(byId("zoom-in"), {click: () => zoom(0.6)});
  on(byId("fit"), {click: fitView});
  if (byId("squeeze")) on(byId("squeeze"), {click: toggleSqueeze});
  on(byId("panel"), {keydown: (event) => event.key === "Escape" && closeDetails()});
  on(document, {keydown: onPageKey});
  on(window, {hashchange: chooseFromAddress, beforeprint: () => all(".fail details").forEach((one) => (one.open = true))});
  matchMedia("(prefers-color-scheme:dark)").addEventListener("change", () => {
    readColours();
    overviewPicture = null;
    askToDraw();
  });
  new ResizeObserver(() => {
    overviewPicture = null;
    askToDraw();
  }).observe(byId("timeline"));
}

function followLink(event, link) {
  event.preventDefault();
  chooseStep(Number(link.dataset.step));
  byId("timeline").scrollIntoView({block: "nearest"});
  gantt.focus({preventScroll: true});
}

async function start() {
  try {
    data = await load();
  } catch {
    return; // a browser without DecompressionStream: the page stays as it is
  }
  const began = performance.now();
  document.documentElement.classList.add("js");
  [gantt, overview, scroller] = ["gantt", "overview", "scroller"].map(byId);
  isSqueezed = data.isSqueezed;
  decode();
  matches = new Uint8Array(stepCount).fill(1);
  failures = Array.from(kind.keys()).filter((bar) => kind[bar] === FAILED).sort((a, b) => begin[a] - begin[b]);
  readColours();
  layTime();
  layLanes();
  [viewBegin, viewEnd] = [0, extent];
  draw();
  layRows();
  listen();
  chooseFromAddress();
  performance.measure("timeline-ready", {start: began});
}

start();
