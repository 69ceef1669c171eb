// A cache object's life with OpenAI's SDK for Node. Prints one JSON object; whoever runs this judges it.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: process.env.API_KEY, maxRetries: 0 });
const told = {};

const made = await client.post("/caching", {
  body: { model: "moonshot-v1", ttl: 600, messages: [{ role: "system", content: "You answer shortly." }], tools: null },
});
told.made = made.status;
let cache = made;
for (let tries = 0; cache.status === "pending" && tries < 300; tries++) {
  await new Promise((done) => setTimeout(done, 200));
  cache = await client.get(`/caching/${made.id}`);
}
told.cache = cache;

const model = "moonshot-v1-8k";
const messages = [
  { role: "cache", content: `cache_id=${cache.id};reset_ttl=3600` },
  { role: "user", content: "And now?" },
];
const { data: answer, response } = await client.chat.completions
  .create({ model, messages, max_tokens: 4 })
  .withResponse();
told.usage = answer.usage;
told.answer = answer.choices.map((choice) => [choice.index, choice.message.role, typeof choice.message.content]);
told.header = response.headers.get("msh-context-cache-id");

const stream = await client.chat.completions.create({
  model, messages, max_tokens: 4, stream: true, stream_options: { include_usage: true },
});
told.streamed = { chunks: 0, finish: null, usage: null };
for await (const chunk of stream) {
  told.streamed.chunks += 1;
  told.streamed.finish ??= chunk.choices[0]?.finish_reason ?? null;
  told.streamed.usage = chunk.usage ?? told.streamed.usage;
}

const left = await client.chat.completions.create({ model, messages, max_tokens: 4000, stream: true });
for await (const chunk of left) {
  told.left = chunk.object;
  break; // which closes the connection
}

told.models = (await client.models.list()).data.map((one) => one.id);
told.listed = (await client.get("/caching", { query: { limit: 1 } })).data.map((one) => one.id);
told.changed = (await client.put(`/caching/${cache.id}`, { body: { metadata: { a: "1" } } })).metadata;
told.deleted = (await client.delete(`/caching/${cache.id}`)).deleted;

told.errors = {};
const refusals = {
  absent: () => client.get(`/caching/${cache.id}`),
  field: () => client.chat.completions.create({ model, messages: [{ role: "user", content: "x" }], temperature: 2 }),
  key: () => new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "sk-wrong", maxRetries: 0 }).models.list(),
};
for (const [name, refused] of Object.entries(refusals)) {
  try {
    await refused();
    told.errors[name] = "none";
  } catch (error) {
    told.errors[name] = [error.constructor.name, error.status, error.error?.type];
  }
}
console.log(JSON.stringify(told));
