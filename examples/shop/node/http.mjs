// The HTTP interface that both examples serve: GET and POST, JSON or text.
import { createServer } from "node:http";

/** Serves `routes`: functions by method and path. A number in place of a body is a status. */
export function serve(routes, port) {
  createServer(async (request, response) => {
    const url = new URL(request.url, "http://localhost");
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const body = chunks.length > 0 ? JSON.parse(Buffer.concat(chunks)) : {};
    const route = routes[`${request.method} ${url.pathname}`];
    try {
      const [status, answer] = route ? await route({ ...Object.fromEntries(url.searchParams), ...body }) : [404, ""];
      response.writeHead(status).end(typeof answer === "string" ? answer : JSON.stringify(answer));
    } catch (error) {
      console.error(error);
      response.writeHead(500).end();
    }
  }).listen(port, "127.0.0.1");
}
