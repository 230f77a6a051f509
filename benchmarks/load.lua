-- A script for wrk: sends the requests of a file (separated by NUL) in random order, and counts the answers that do
-- not have the expected status. It pauses when it is ready, until somebody sends it SIGCONT.
--
--   wrk ... -s load.lua URL -- FILE STATUS [TAG]
--
-- With a TAG, each request has a byte 1 for it: the tag of the answer before, and in the first request this one.
-- That is for one thread with one connection.

local ffi = require("ffi")
ffi.cdef("int raise(int signal);")
local SIGSTOP = 19

local requests = {}
local expected
local tag

unexpected = 0 -- global, so that done(), which runs in an environment of its own, can ask the thread for it

local threads = {}

function setup(thread)
   table.insert(threads, thread)
end

function init(args)
   local file = assert(io.open(args[1], "rb"))
   for request in file:read("*a"):gmatch("%Z+") do
      table.insert(requests, request)
   end
   file:close()
   expected = tonumber(args[2])
   tag = args[3]
   math.randomseed(os.time())
   ffi.C.raise(SIGSTOP)
end

function request()
   local chosen = requests[math.random(#requests)]
   if tag then
      return (chosen:gsub("\1", (tag:gsub("%%", "%%%%"))))
   end
   return chosen
end

function response(status, headers, body)
   if status ~= expected then
      unexpected = unexpected + 1
   elseif tag then
      tag = headers["ETag"] or body:match('"sequence_token":"([^"]+)"')
   end
end

function done(summary)
   local wrong = 0
   for _, thread in ipairs(threads) do
      wrong = wrong + thread:get("unexpected")
   end
   local errors = summary.errors
   io.write(string.format(
      '{"requests": %d, "unexpected": %d, "failed": %d}\n',
      summary.requests, wrong, errors.connect + errors.read + errors.write + errors.timeout
   ))
end
