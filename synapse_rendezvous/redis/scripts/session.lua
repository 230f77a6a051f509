-- The arguments that all scripts have, and the time. The offsets are those of VALUE in layout.py.
local sessions, queue, totals = unpack(KEYS)
local id = ARGV[1]
local ended = {}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- The field of the outcomes of a session's transactions; no id has a slash.
local function outcomes_of(session_id)
  return session_id .. '/'
end

local function is_over(value)
  return tonumber(string.sub(value, 55, 67)) + 2000 <= now  -- LINGER_MS of session.py
end
