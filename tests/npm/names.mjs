// Prints, as a JSON list, the file names that the npm package gives to the ids of the JSON list in argv[2]; makes nothing else.
import { basename, join } from "node:path";
import { pathToFileURL } from "node:url";

const entry = pathToFileURL(join(process.env.ISO_ORCHESTRATOR_NPM, "dist", "storage.js"));
const { WorkflowStore } = await import(entry);
const ids = JSON.parse(process.argv[2]);
const names = ids.map((workflowId) => basename(new WorkflowStore({ workflowId, initialState: null }).recordPath));
process.stdout.write(`${JSON.stringify(names)}\n`);
