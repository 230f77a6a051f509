"""How sessions are kept inside Redis, and what the scripts that keep them have in common.

Three keys, all with the homeserver's name in braces, so that a cluster keeps them together:

- `...:<id>`, a string: one revision, laid out as `VALUE` says; Redis drops it when its time is over;
- `...:queue`, a list: a record of each session in the order of creation and hence of expiry, as `RECORD` says; empty if
  the session was deleted;
- `...:totals`, a hash: how many `sessions` there are, the `bytes` of their payloads, the sessions of each client and
  each network that shares, and how many records have left the queue.

What changes the queue changes the totals in the same script, and what has expired is uncounted before a quota refuses
anybody, so the totals are exact at each refusal and nothing leaks. (Where sessions stop living equally long, because
`ttl` was made shorter or Redis' clock was set back, the shorter ones count until the longer ones before them are over.)
All times are Redis' own: it does not matter whether the clocks of the workers agree.
"""

import re

VALUE = re.compile(
    # The letter keeps Synapse's connection from reading a value as a number.
    rb"r(?P<tag>.{20})(?P<previous_tag>.{20})(?P<last_modified_ms>\d{13})(?P<expires_ms>\d{13})"
    rb"(?P<updates>\d{7})"
    rb"(?P<place>\d{12})"  # of its record, counted from the first that the queue ever had
    # Lengths in front of what has no fixed length; the rest is the payload.
    rb"(?P<client_length>\d{2})",
    re.DOTALL,
)
"""How a value begins. Then come the client, the length of the type in three digits, the type, and the payload."""

RECORD = re.compile(r"(?P<expires_ms>\d+) (?P<bytes>\d+) (?P<updates>\d+) (?P<client>\S+) (?P<id>\S+)")
"""What the queue knows of a session; of its id, the first characters."""

HELD = re.compile(rb"(\d+) (-?\d+) (\d+) ([01])")
"""Sessions, bytes, clients, and whether some of the sessions are over."""

NO_TAG = b"." * 20
"""Stands for the previous tag in the first revision."""

ABSENT, ANY = b"-", b"*"
"""What a script is told of a list of tags that is not there, and of one that every tag is in. Others are `,tag,tag`."""

# The offsets below are those of VALUE.
KEYS = """
local session, queue, totals = unpack(KEYS)
local id = string.match(session, '[^:]+$')
local ended = {}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

CURRENT = """
local value = redis.call('GET', session)
local expires = value and tonumber(string.sub(value, 55, 67))
if value and expires <= now then
  value = false
end
"""

REVISION = """
if not value then
  return {'gone', now, '', ended}
end
local tag, previous = string.sub(value, 2, 21), string.sub(value, 22, 41)
local modified = tonumber(string.sub(value, 42, 54))
local updates = tonumber(string.sub(value, 68, 74))
local place = tonumber(string.sub(value, 75, 86))
local client_end = 88 + tonumber(string.sub(value, 87, 88))
local client, write = string.sub(value, 89, client_end), string.sub(value, client_end + 1)
local size = #write - 3 - tonumber(string.sub(write, 1, 3))

local function has(tags, one)
  return tags == '*' or string.find(tags, one, 1, true) ~= nil
end

-- RFC 9110 section 13.2.2 for methods that change something, as Preconditions.evaluate has it.
local function holds(if_match, if_none_match, unmodified_since)
  if if_match ~= '-' then
    if not has(if_match, tag) then
      return false
    end
  elseif unmodified_since ~= '-' and math.floor(modified / 1000) > tonumber(unmodified_since) then
    return false
  end
  return not has(if_none_match, tag)
end
"""

QUOTAS = """
local function record(bytes, updates, of)
  return string.format('%d %d %d %s %s', expires, bytes, updates, of, string.sub(id, 1, 6))
end

local function total(field)
  return tonumber(redis.call('HGET', totals, field) or 0)
end

-- As clients.shares has it.
local function shares(of)
  if string.find(of, '.', 1, true) then
    return {{of, 1}}
  elseif #of == 16 then
    return {{of, 1}, {string.sub(of, 1, 14), 3}, {string.sub(of, 1, 12), 6}}
  end
  return {}
end

-- Put another record in the place of one; false if it is not there, as after an eviction.
local function record_instead(place, old, new)
  local position = place - total('left')
  if position < 0 or redis.call('LINDEX', queue, position) ~= old then
    return false
  end
  redis.call('LSET', queue, position, new)
  return true
end

local function count(sessions, bytes, of)
  redis.call('HINCRBY', totals, 'sessions', sessions)
  redis.call('HINCRBY', totals, 'bytes', bytes)
  for _, share in ipairs(shares(of)) do
    if redis.call('HINCRBY', totals, share[1], sessions) <= 0 then
      redis.call('HDEL', totals, share[1])
    end
  end
end

local function is_over(record)
  return record == '' or tonumber(string.match(record, '^%d+')) <= now
end

-- Forget the oldest hundred of those that are over; false if none is. Bounded, because Redis does nothing else
-- meanwhile.
local function sweep()
  local oldest = redis.call('LINDEX', queue, 0)
  if not oldest or not is_over(oldest) then
    return false
  end
  local left = 0
  for _, each in ipairs(redis.call('LRANGE', queue, 0, 99)) do
    if not is_over(each) then
      break
    end
    left = left + 1
    if each ~= '' then
      local bytes, of = string.match(each, '^%d+ (%d+) %d+ (%S+)')
      count(-1, 0 - bytes, of)  -- Redis takes no -0
      table.insert(ended, each)
    end
  end
  redis.call('LTRIM', queue, left, -1)
  redis.call('HINCRBY', totals, 'left', left)
  return true
end

-- Whether there is room, once as many of the expired are forgotten as it takes.
local function makes(room)
  while not room() do
    if not sweep() then
      return false
    end
  end
  return true
end

local function makes_room_for(bytes, max_total_bytes)
  return bytes <= 0 or makes(function()
    return total('bytes') + bytes <= tonumber(max_total_bytes)
  end)
end
"""

TELL = """
-- Wake those who wait in other processes. A user without the right to do that has written all the same.
local function tell(channel)
  redis.pcall('PUBLISH', channel, id)
end
"""

STORE = """
local function store(tag, previous, updates, place, client, write)
  local head = string.format(
    'r%s%s%013d%013d%07d%012d%02d%s', tag, previous, now, expires, updates, place, #client, client
  )
  redis.call('SET', session, head .. write)
  redis.call('PEXPIREAT', session, expires)
  return head
end
"""
