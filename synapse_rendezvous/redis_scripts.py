"""What runs inside Redis: a script for each operation of a store, and how sessions are kept there.

Three keys, all with the homeserver's name in braces, so that a cluster keeps them together:

- `...:session:<id>`, a string: one revision, laid out as `VALUE` says; Redis drops it when its time is over;
- `...:index`, a sorted set: each live session by its end, as `<bytes of payload> <client> <id>`;
- `...:totals`, a hash: the `bytes` of all payloads, and the sessions of each client and each network that shares.

What changes the index changes the totals in the same script, and what has expired is uncounted before a quota refuses
anybody, so the totals are exact at each refusal and nothing leaks. All times are Redis' own: it does not matter whether
the clocks of the workers agree.

Every script is given these three keys and returns an array: `ok`, `gone`, `failed` or `full`; Redis' time in
milliseconds; and a value where there is one to tell. Where Redis takes no writes (out of memory, read-only), it refuses
the first one, so a script that it ends has changed nothing.
"""

import re

VALUE = re.compile(
    # The letter keeps Synapse's connection from reading a value as a number.
    rb"r(?P<tag>.{20})(?P<previous_tag>.{20})(?P<last_modified_ms>\d{13})(?P<expires_ms>\d{13})"
    rb"(?P<updates>\d{7})"
    # Lengths in front of what has no fixed length; the rest is the payload.
    rb"(?P<client_length>\d{2})",
    re.DOTALL,
)
"""How a value begins. Then come the client, the length of the type in three digits, the type, and the payload."""

NO_TAG = b"." * 20
"""Stands for the previous tag in the first revision."""

ABSENT, ANY = b"-", b"*"
"""What a script is told of a list of tags that is not there, and of one that every tag is in. Others are `,tag,tag`."""

# The offsets below are those of VALUE.
_SESSION = """
local session, index, totals = unpack(KEYS)
local id = string.match(session, '[^:]+$')
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local value = redis.call('GET', session)
local expires = value and tonumber(string.sub(value, 55, 67))
if value and expires <= now then
  value = false
end
"""

_REVISION = """
if not value then
  return {'gone', now}
end
local tag, previous = string.sub(value, 2, 21), string.sub(value, 22, 41)
local modified = tonumber(string.sub(value, 42, 54))
local updates = tonumber(string.sub(value, 68, 74))
local client_end = 76 + tonumber(string.sub(value, 75, 76))
local client, write = string.sub(value, 77, client_end), string.sub(value, client_end + 1)
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

_QUOTAS = """
local function member(bytes, of)
  return string.format('%d %s %s', bytes, of, id)
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

local function uncount(bytes, of)
  redis.call('HINCRBY', totals, 'bytes', 0 - bytes)  -- Redis takes no -0
  for _, share in ipairs(shares(of)) do
    if redis.call('HINCRBY', totals, share[1], -1) <= 0 then
      redis.call('HDEL', totals, share[1])
    end
  end
end

-- Forget the oldest hundred of those that have expired; false if none has. Bounded, because Redis does nothing else
-- meanwhile.
local function sweep()
  local expired = redis.call('ZRANGEBYSCORE', index, '-inf', now, 'LIMIT', 0, 100)
  if #expired == 0 then
    return false
  end
  redis.call('ZREM', index, unpack(expired))
  for _, each in ipairs(expired) do
    uncount(string.match(each, '^(%d+) (%S+) '))
  end
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

_TELL = """
-- Wake those who wait in other processes. A user without the right to do that has written all the same.
local function tell(channel)
  redis.pcall('PUBLISH', channel, id)
end
"""

_STORE = """
local function store(tag, previous, updates, client, write)
  local head = string.format('r%s%s%013d%013d%07d%02d%s', tag, previous, now, expires, updates, #client, client)
  redis.call('SET', session, head .. write)
  redis.call('PEXPIREAT', session, expires)
  return head
end
"""

GET = (
    _SESSION
    + """
if not value then
  return {'gone', now}
end
return {'ok', now, value}
"""
)
"""Returns the value."""

CREATE = (
    _SESSION
    + _QUOTAS
    + _STORE
    + """
local tag, write, size, client, ttl, max_sessions, max_total_bytes = unpack(ARGV)
local max_client_sessions, crowded_sessions, crowded_client_sessions = unpack(ARGV, 8)
sweep()  -- more than one creation adds, so the index does not grow with what has expired
local function fewer_than(most)
  return makes(function() return redis.call('ZCARD', index) < tonumber(most) end)
end
if not fewer_than(max_sessions) then
  return {'full', now, 'max_sessions'}
end
local quota, most = 'per_client.max_sessions', max_client_sessions
if not fewer_than(crowded_sessions) then
  quota, most = 'per_client.crowded_sessions', crowded_client_sessions
end
for _, share in ipairs(shares(client)) do
  if not makes(function() return total(share[1]) < most * share[2] end) then
    return {'full', now, quota}
  end
end
if not makes_room_for(tonumber(size), max_total_bytes) then
  return {'full', now, 'max_total_bytes'}
end
expires = now + ttl
local head = store(tag, string.rep('.', 20), 0, client, write)
if redis.call('EXISTS', index) == 0 then
  redis.call('DEL', totals)  -- whatever may have happened to either key, an empty index has no totals
end
redis.call('ZADD', index, expires, member(size, client))
redis.call('HINCRBY', totals, 'bytes', size)
for _, share in ipairs(shares(client)) do
  redis.call('HINCRBY', totals, share[1], 1)
end
for _, key in ipairs({index, totals}) do
  if redis.call('PTTL', key) < tonumber(ttl) then
    redis.call('PEXPIREAT', key, expires)
  end
end
return {'ok', now, head}
"""
)
"""Returns the value up to the type, or the quota that is met."""

REPLACE = (
    _SESSION
    + _REVISION
    + _QUOTAS
    + _STORE
    + _TELL
    + """
local new_tag, new_write, new_size, max_total_bytes, max_updates, repeats_from_any, channel = unpack(ARGV)
local if_match, if_none_match, unmodified_since = unpack(ARGV, 8)
local growth = new_size - size
if not holds(if_match, if_none_match, unmodified_since) then
  -- As Preconditions.repeat has it.
  if if_match ~= '-' and not string.find(if_match, tag, 1, true) and write == new_write
    and (repeats_from_any == '1' or string.find(if_match, previous, 1, true))
  then
    return {'ok', now, string.sub(value, 1, client_end)}
  end
  return {'failed', now, value}
end
if updates >= tonumber(max_updates) then
  return {'full', now, 'max_updates'}
end
if not makes_room_for(growth, max_total_bytes) then
  return {'full', now, 'max_total_bytes'}
end
local head = store(new_tag, tag, updates + 1, client, new_write)
if growth ~= 0 and redis.call('ZREM', index, member(size, client)) == 1 then
  redis.call('ZADD', index, expires, member(new_size, client))
  redis.call('HINCRBY', totals, 'bytes', growth)
end
tell(channel)
return {'ok', now, head}
"""
)
"""Returns the value up to the type; the whole of it if a precondition failed."""

DELETE = (
    _SESSION
    + _REVISION
    + _QUOTAS
    + _TELL
    + """
local channel, if_match, if_none_match, unmodified_since = unpack(ARGV)
if not holds(if_match, if_none_match, unmodified_since) then
  return {'failed', now, value}
end
redis.call('DEL', session)
if redis.call('ZREM', index, member(size, client)) == 1 then
  uncount(size, client)
end
tell(channel)
return {'ok', now}
"""
)
"""Returns the value if a precondition failed."""
