// The machine, tested with the vectors of all clients.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { DEFAULTS, Machine } from "../dist/machine.js";

const VECTORS = JSON.parse(readFileSync(new URL("../../../protocol/vectors/client.json", import.meta.url)));

/** Passes the input of a step to the machine. */
function tell(machine, { at, ...step }) {
  if ("start" in step) machine.start(at);
  else if ("token" in step) machine.token(at, step.token.token, step.token.goodFor);
  else if ("loaded" in step) machine.loaded(at, step.loaded.load, step.loaded.position);
  else if ("notLoaded" in step) machine.notLoaded(at, step.notLoaded.load, step.notLoaded.reason);
  else if ("noToken" in step) machine.noToken(at, step.noToken);
  else if ("message" in step) machine.message(at, step.message);
  else if ("answer" in step) machine.answered(at, step.answer);
  else if ("heard" in step) machine.heard(at);
  else if ("closed" in step) machine.closed(at, step.closed.code, step.closed.reason);
  else if ("refused" in step) {
    machine.refused(at, step.refused.status, step.refused.reason, step.refused.retryAfter ?? null);
  } else if ("posted" in step) {
    const { ref, status, body, retryAfter } = step.posted;
    machine.posted(at, ref, status, body, retryAfter ?? null);
  } else if ("publish" in step) {
    const { ref, event, data = {} } = step.publish;
    machine.publish(at, ref, event, data);
  } else if ("broadcast" in step) {
    const { event, data = {} } = step.broadcast;
    assert.equal(machine.broadcast(at, event, data)?.code ?? null, step.unsent, JSON.stringify(step));
  } else if ("broadcastPosted" in step) {
    const { number, status, body } = step.broadcastPosted;
    machine.broadcastPosted(number, status, body);
  } else if ("tick" in step) machine.tick(at);
  else if ("probe" in step) machine.probe(at);
  else if ("offline" in step) machine.offline();
  else if ("pause" in step) machine.pause();
  else if ("resume" in step) machine.resume(at);
  else if ("close" in step) machine.close();
  else assert.fail(`a step that is not known: ${JSON.stringify(step)}`);
}

for (const vector of VECTORS.cases) {
  test(vector.name, () => {
    const random = () => vector.random ?? 0.5;
    const machine = new Machine({ ...DEFAULTS, ...vector.limits }, random, vector.position ?? null, vector.state ?? false);
    machine.broadcasts = vector.broadcasts ?? false;
    for (const step of [...(VECTORS.preludes[vector.after] ?? []), ...vector.steps]) {
      tell(machine, step);
      const did = machine.take();
      const told = `${JSON.stringify(step)}\ndid ${JSON.stringify(did)}`;
      assert.equal(did.length, step.then.length, told);
      // An action matches if it has the members of the vector. Texts for humans are not compared.
      const named = did.map((action, place) =>
        Object.fromEntries(Object.keys(step.then[place]).map((name) => [name, action[name]])),
      );
      assert.deepEqual(named, step.then, told);
      if ("deadline" in step) assert.equal(machine.deadline, step.deadline, told);
    }
  });
}
