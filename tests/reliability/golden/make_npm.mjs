// Writes the records of `npm-0.2.0` with the npm package 0.2.0, and beside each what the package itself reads from it.
// Made once; what is there is never made again.
//
// ISO_ORCHESTRATOR_NPM=folder-of-the-package node make_npm.mjs npm-0.2.0
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const { openWorkflow, runWorkflow } = await import(
  pathToFileURL(join(process.env.ISO_ORCHESTRATOR_NPM, "dist", "index.js"))
);
const [target] = process.argv.slice(2);

let seconds = 0;
const now = () => new Date(Date.UTC(2026, 4, 14, 12, 0, seconds++, 7));

const cases = {
  empty: async (options) => void (await openWorkflow(options)),
  completed: (options) =>
    runWorkflow(options, async (workflow) => {
      await workflow.step("fetch", async () => ({ pages: [1, 2.5, -0, 1e21], text: "ünï \u0000 \u001b[31m" }));
      await workflow.step("send", async () => null, { idempotencyKey: "mail:1" });
      await workflow.updateState((state) => ({ ...state, sent: 1 }));
      await workflow.withMutex("account", async () =>
        workflow.appendEvent({ type: "mail.sent", message: "to a", detail: { n: 1 } }),
      );
    }),
  failed: (options) =>
    runWorkflow(options, async (workflow) => {
      let tries = 0;
      const flaky = async () => {
        tries += 1;
        if (tries < 3) throw Object.assign(new Error("try again"), { code: "E_BUSY" });
        return tries;
      };
      await workflow.step("flaky", flaky, { retry: 3 });
      await workflow.step("hopeless", async () => {
        throw new Error("no", { cause: new Error("why") });
      });
    }).catch(() => {}),
  running: async (options) => {
    const workflow = await openWorkflow(options);
    await workflow.setStatus("running");
    workflow.step("half done", () => new Promise(() => {}));
    await new Promise((resolve) => setTimeout(resolve, 200));
  },
  leases: async (options) => {
    const workflow = await openWorkflow(options);
    await workflow.heartbeat("worker", { phase: "one" });
    await workflow.heartbeat("silent");
    await workflow.touchLease("slot", { holder: "alpha", ttlMs: 30_000, detail: { n: 1 } });
    await workflow.touchLease("slot", { holder: "alpha", ttlMs: 60_000 });
    await workflow.touchLease("released", { holder: "beta", ttlMs: 1_500 });
    await workflow.releaseLease("released", "beta");
  },
  "odd names": (options) =>
    runWorkflow({ ...options, workflowId: "Ödd id/../ 7\n", initialState: ["a", {}] }, async (workflow) => {
      await workflow.step("../../step\n", async () => "\ud83d\ude00 \u2028 \ud800");
      await workflow.step("large", async () => 9007199254740991);
    }),
};

const withoutStacks = (text) => text.replace(/"stack": "(?:[^"\\]|\\.)*"/g, '"stack": "Error: as it was\\n    at somewhere"');

for (const [name, make] of Object.entries(cases)) {
  const dir = mkdtempSync(join(tmpdir(), "golden-"));
  const options = { workflowId: `golden ${name}`, dir, initialState: { sent: 0 }, now };
  await make(options);
  const [file] = readdirSync(join(dir, "workflows"));
  const text = withoutStacks(readFileSync(join(dir, "workflows", file), "utf8")); // paths of a machine are in them
  const folder = join(target, name);
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, file), text);
  const leases = Object.keys(JSON.parse(text).leases ?? {});
  const expected = { record: JSON.parse(text), tokens: Object.fromEntries(leases.map((key) => [key, 0])) };
  writeFileSync(join(folder, "expected"), `${JSON.stringify(expected, null, 1)}\n`);
  rmSync(dir, { recursive: true });
}
process.exit(0); // a step is still running
