-- wrk's requests of benchmarks/serve.py: a sentence of the file SENTENCES each, by chance.
local bodies = {}
for line in io.lines(os.getenv("SENTENCES")) do bodies[#bodies + 1] = line end

function init() math.randomseed(tonumber(os.getenv("SEED"))) end

function request()
  local headers = { ["Content-Type"] = "application/json" }
  return wrk.format("POST", "/translate", headers, bodies[math.random(#bodies)])
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "seconds": %f, "p50": %f, "p95": %f, "p99": %f, "errors": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
    latency:percentile(95) / 1e3, latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
