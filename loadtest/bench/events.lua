-- wrk: POSTs of cell_monitor events, each with an eventId of its own.
--   wrk … -s events.lua URL -- RUN BATCH USERS_FILE CELLS_FILE [EVERY_MS]
-- RUN is the first 24 characters of every eventId (an UUID's first four groups), so ids are unique across runs; BATCH is the number of events in a POST.
-- The files hold ready JSON fragments, one a line (traffic.py writes them); a request costs one concatenation of them with ids and a counter.
-- EVERY_MS: a request is made so often, all connections together, in place of when the last was answered.

local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

local function lines_of(path)
  local lines = {}
  for line in io.lines(path) do
    lines[#lines + 1] = line
  end
  return lines
end

local run, batch, users, cells, head, first
local parts = {}
local stamp = ""
local events = 0 -- made so far in this run
requests_made = 0 -- global: done() reads it from the thread

local ffi = require("ffi")
ffi.cdef([[
  struct bench_time { long s; long ns; };
  int clock_gettime(int clock, struct bench_time *time);
]])
local time = ffi.new("struct bench_time")

local function now_ms()
  ffi.C.clock_gettime(1, time) -- monotonic
  return tonumber(time.s) * 1e3 + tonumber(time.ns) / 1e6
end

-- For wrk: how long this connection waits until it sends, in ms. Who is late sends at once, and the plan goes on from there.
local function pace(every_ms)
  local due = 0
  return function()
    local now = now_ms()
    due = math.max(due + every_ms, now - 100)
    return math.max(0, math.floor(due - now + 0.5))
  end
end

function init(args)
  if args[5] then
    delay = pace(tonumber(args[5]))
  end
  run, batch = args[1], tonumber(args[2])
  users, cells = lines_of(args[3]), lines_of(args[4])
  first = tonumber(run:sub(1, 8), 16) % (#users * #cells) -- a run's place to begin
  head = "POST " .. wrk.path .. " HTTP/1.1\r\nHost: " .. wrk.host .. ":" .. wrk.port
    .. "\r\nContent-Type: application/json\r\nOrigin: http://127.0.0.1:8888\r\nContent-Length: "
end

-- Six pieces an event; the last piece of one event and the first of the next are one.
local function put(at)
  if events % 64 == 0 then
    stamp = os.date("!%Y-%m-%dT%H:%M:%S.")
  end
  -- Users take turns. 200 of them run the same cell in step, as one class does, and every 200 are at another cell. The
  -- file of cells has each one five times, of which one fails, and any five users in a row run all five: so one run in
  -- five fails, however many users there are and however short a load is.
  local turn = first + events
  local user = turn % #users
  local cell = (math.floor(turn / #users) + 7 * math.floor(user / 200) + #cells / 5 * (user % 5)) % #cells
  parts[at] = string.format('{"eventId":"%s%012x","eventType":"cell_executed","eventTime":"%s%03dZ",',
    run, events, stamp, events % 1000)
  parts[at + 1] = users[user + 1]
  parts[at + 2] = cells[cell + 1]
  events = events + 1
end

function request()
  requests_made = requests_made + 1
  for i = 1, batch do
    local at = 4 * i - 2
    parts[at - 1] = i == 1 and "[" or ","
    put(at)
  end
  parts[4 * batch + 1] = "]"
  local body = table.concat(parts)
  return head .. #body .. "\r\n\r\n" .. body
end

-- One line of JSON for the bench to read. wrk asks for one request before it starts and never sends it.
function done(summary, latency)
  local made = 0
  for _, thread in ipairs(threads) do
    made = made + thread:get("requests_made") - 1
  end
  local errors = summary.errors
  io.write(string.format(
    '\nBENCH {"seconds":%.6f,"answered":%d,"sent":%d,"p99_ms":%.3f,'
      .. '"non_2xx":%d,"connect":%d,"read":%d,"write":%d,"timeout":%d}\n',
    summary.duration / 1e6, summary.requests, made, latency:percentile(99) / 1e3,
    errors.status, errors.connect, errors.read, errors.write, errors.timeout))
end
