// The npm package: a record in one JSON file, written whole for every event; nothing is synced.
//
// The protocol is that of protocol.py: WORKLOAD PARAMETERS FOLDER, one JSON object on the last line.

import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { isDeepStrictEqual } from 'node:util';
import { pathToFileURL } from 'node:url';

const [workload, parameters, folder] = process.argv.slice(2);
const task = {
  first: 0, steps: 100, size: 200, pause: 0, workers: 1, limit: 30, hold: 0, together: false, items: [],
  ...JSON.parse(parameters),
};
const { openWorkflow, runWorkflow } = await import(
  pathToFileURL(createRequire(join(process.env.NPM_PEER, 'x.js')).resolve('@razroo/iso-orchestrator'))
);

const options = { workflowId: 'bench', dir: folder, initialState: {} };
const patient = { timeoutMs: 600_000 };
const text = 'y'.repeat(task.size - JSON.stringify({ number: '0'.repeat(9), text: '' }).length);
const numbers = Array.from({ length: task.steps }, (_, index) => task.first + index);
const sleep = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));
const now = () => Number(process.hrtime.bigint()) / 1e9;
const ran = [];

function result(number) {
  return { number: String(number).padStart(9, '0'), text };
}

async function body(number) {
  ran.push(number);
  if (task.pause) await sleep(task.pause);
  return result(number);
}

function check(number, value) {
  if (!isDeepStrictEqual(value, result(number))) throw new Error(`step ${number} gave ${JSON.stringify(value)}`);
}

function proc(path, name) {
  const line = readFileSync(path, 'utf8').split('\n').find((each) => each.startsWith(name));
  return Number(line.split(/\s+/)[1]);
}

async function waitForWord() {
  if (!task.together) return;
  console.log('ready');
  await new Promise((done) => process.stdin.once('data', done));
  process.stdin.destroy();
}

async function steps(loop) {
  const report = {};
  const began = now();
  let closing;
  await runWorkflow(options, async (workflow) => {
    const step = (number) => workflow.step(`job(${number})`, () => body(number));
    report.opening = now() - began;
    await waitForWord();
    const written = proc('/proc/self/io', 'wchar:');
    report.began = now();
    Object.assign(report, await loop(step, workflow));
    report.ended = now();
    report.bytes = proc('/proc/self/io', 'wchar:') - written;
    report.peak = proc('/proc/self/status', 'VmHWM:') * 1024;
    report.ran = ran.length;
    closing = now();
  });
  if (new Set(ran).size !== ran.length) throw new Error('a step ran twice');
  report.closing = now() - closing;
  report.peak_closed = proc('/proc/self/status', 'VmHWM:') * 1024;
  return report;
}

async function chain(step) {
  const started = performance.now();
  let done = 0;
  let half = 0;
  for (const number of numbers) {
    if (done === Math.floor(task.steps / 2)) half = performance.now() - started;
    check(number, await step(number));
    done += 1;
    if (performance.now() - started > task.limit * 1000) break;
  }
  return { seconds: (performance.now() - started) / 1000, first_half: half / 1000, done };
}

async function fanOut(step, workflow) {
  const started = performance.now();
  const { results } = await workflow.forEach(numbers, step, { maxParallel: task.workers });
  const seconds = (performance.now() - started) / 1000;
  numbers.forEach((number, index) => check(number, results[index].value));
  return { seconds, done: results.length };
}

async function mutex() {
  const workflow = await openWorkflow(options);
  await workflow.withMutex('key', async () => {});
  const started = performance.now();
  for (let turn = 0; turn < task.steps; turn += 1) await workflow.withMutex('key', async () => {});
  return { seconds: (performance.now() - started) / 1000, done: task.steps };
}

async function handOver() {
  const workflow = await openWorkflow(options);
  await waitForWord();
  return turns(workflow, task.first);
}

async function handOverThreads() {
  const workflow = await openWorkflow(options);
  const reports = await Promise.all([0, 1].map((who) => turns(workflow, who)));
  return { parties: reports.map((report) => report.turns) };
}

async function turns(workflow, who) {
  const [mine, others] = await Promise.all([who, 1 - who].map((party) => channel(join(folder, `turn-${party}`))));
  const done = [];
  if (who === 1) await mine.wait();
  for (let turn = 0; turn < task.steps; turn += 1) {
    const asked = now();
    const before = process.cpuUsage();
    const stamps = await workflow.withMutex('key', async () => {
      const acquired = now();
      const { user, system } = process.cpuUsage(before);
      await others.tell();
      await sleep(task.hold);
      return { acquired, cpu: (user + system) / 1e6, released: now() };
    }, patient);
    done.push({ asked, ...stamps });
    await mine.wait();
  }
  await others.tell();
  return { turns: done };
}

async function channel(path) {
  try {
    execFileSync('mkfifo', [path], { stdio: 'ignore' });
  } catch {
    // the other party made it
  }
  const file = await open(path, 'r+');
  return { tell: () => file.write('.'), wait: () => file.read(Buffer.alloc(1), 0, 1, null) };
}

async function keyed() {
  const running = new Set();
  const took = [];
  const started = performance.now();
  await runWorkflow(options, (workflow) => workflow.forEach(task.items, async ([key, pause]) => {
    if (running.has(key)) throw new Error(`two items of ${key} overlap`);
    running.add(key);
    const began = now();
    await sleep(pause);
    running.delete(key);
    took.push([key, now() - began]);
  }, { maxParallel: task.workers, mutexKey: ([key]) => key, mutex: patient }));
  if (took.length !== task.items.length) throw new Error(`${took.length} of ${task.items.length} items ran`);
  return { seconds: (performance.now() - started) / 1000, done: took.length, took };
}

const workloads = {
  chain: () => steps(chain),
  fan_out: () => steps(fanOut),
  mutex,
  hand_over: handOver,
  hand_over_threads: handOverThreads,
  keyed,
};
const answer = workloads[workload] ? await workloads[workload]() : { cannot: 'it has none' };
console.log(JSON.stringify(answer));
process.exit(0);
