-- A script for wrk: sends the requests of a file (separated by NUL) in random order, and counts the answers that do
-- not have the expected status. It pauses when it is ready, until somebody sends it SIGCONT.
--
--   wrk ... -s load.lua URL -- FILE STATUS [TAG...]
--
-- With TAGs, each thread has one connection, one of the requests and its tag. The request has a byte 1 for the tag: that
-- of the answer before, and at first this one.

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
   thread:set("number", #threads)
end

function init(args)
   local file = assert(io.open(args[1], "rb"))
   for request in file:read("*a"):gmatch("%Z+") do
      table.insert(requests, request)
   end
   file:close()
   expected = tonumber(args[2])
   if args[3] then
      requests = {requests[number]}
      tag = args[2 + number]
   end
   math.randomseed(os.time())
   if not args[3] or not args[3 + number] then -- the last of the threads, which are prepared in turn
      ffi.C.raise(SIGSTOP)
   end
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
