// Reads cases from stdin, one JSON object a line, and streams each with the official SDK; tells what it saw.
const OpenAI = require("openai").default;
const lines = require("fs").readFileSync(0, "utf8").trim().split("\n").map((line) => JSON.parse(line));
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "anything", maxRetries: 0 });

async function see({ number, body }) {
  const seen = { number, text: "", called: "", finish: null, error: null };
  try {
    for await (const chunk of await client.chat.completions.create(body)) {
      for (const choice of chunk.choices ?? []) {
        seen.text += choice.delta?.content ?? "";
        for (const call of choice.delta?.tool_calls ?? []) seen.called += call.function?.arguments ?? "";
        seen.finish = choice.finish_reason ?? seen.finish;
      }
    }
  } catch (error) {
    seen.error = `${error.constructor.name}: ${error.message}`;
  }
  console.log(JSON.stringify(seen));
}

(async () => {
  const worker = async () => {
    for (let one = lines.shift(); one !== undefined; one = lines.shift()) await see(one);
  };
  await Promise.all(Array.from({ length: 10 }, worker));
})();
