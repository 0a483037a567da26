// An MCP server that writes down every call that truly arrives, for tests that count effects. No dependencies.
// Operations: `add` (has its effect each time), `put` (once for each key), both with `delay` in milliseconds before
// the answer; `drop` has its effect and cuts the connection. GET /calls tells what arrived; GET /define/add/WORDS has the
// server describe `add` otherwise from then on. PUT /WHATEVER/ID is an HTTP API of one operation: its body has to be JSON.
import { createServer } from 'node:http';

const calls = [];
const schema = { type: 'object', properties: { id: { type: 'string' }, delay: { type: 'integer' } } };
const tools = ['add', 'put', 'drop'].map((name) => ({ name, description: name, inputSchema: schema }));

const pause = (milliseconds) => new Promise((wake) => setTimeout(wake, milliseconds));

async function answer(request, response) {
  const say = (body) => {
    response.writeHead(200, { 'content-type': 'application/json' });
    response.end(JSON.stringify({ jsonrpc: '2.0', id: request.id, ...body }));
  };
  switch (request.method) {
    case 'initialize':
      return say({ result: { protocolVersion: '2025-11-25', capabilities: { tools: {} }, serverInfo: { name: 'counter', version: '1' } } });
    case 'tools/list':
      return say({ result: { tools } });
    case 'tools/call': {
      const { name, arguments: args = {}, _meta: meta = {} } = request.params;
      calls.push({ name, id: args.id, key: meta['belay.dev/idempotency-key'] ?? null, at: Date.now() });
      if (name === 'drop') return response.destroy();
      await pause(args.delay ?? 0);
      return say({ result: { content: [{ type: 'text', text: `${name} ${args.id}` }] } });
    }
    default:
      if (request.id === undefined) return response.writeHead(202).end();
      return say({ error: { code: -32601, message: `no method ${request.method}` } });
  }
}

createServer((request, response) => {
  if (request.method === 'GET' && request.url === '/calls') {
    response.writeHead(200, { 'content-type': 'application/json' });
    return response.end(JSON.stringify(calls));
  }
  const [, define, name, words] = request.url.split('/');
  if (request.method === 'GET' && define === 'define') {
    tools.find((tool) => tool.name === name).description = decodeURIComponent(words);
    return response.writeHead(200).end('defined');
  }
  if (request.method === 'PUT') {
    const [id, tags] = [decodeURIComponent(name.split('?')[0]), new URL(request.url, 'http://x').searchParams.getAll('tag')];
    let body = '';
    request.on('data', (chunk) => (body += chunk));
    request.on('end', () => {
      const key = request.headers['idempotency-key'] ?? null;
      calls.push({ name: `thing ${tags} ${JSON.stringify(JSON.parse(body))}`, id, key, at: Date.now() });
      response.writeHead(201, { 'content-type': 'application/json' }).end(JSON.stringify({ id }));
    });
    return;
  }
  if (request.method !== 'POST') return response.writeHead(405).end();
  let body = '';
  request.on('data', (chunk) => (body += chunk));
  request.on('end', () => answer(JSON.parse(body), response));
}).listen(3001);
