"""What runs inside Redis: a script for each operation of a store.

Every script is given the three keys and, as the first of its arguments, an id. It returns an array: `ok`, `gone`,
`failed` or `full`; Redis' time in milliseconds; a value, empty where there is none to tell; and a record of each
session that it found expired.

Where Redis takes no writes (read-only; out of memory, unless they free some), it refuses the first one of a script and
never a later one. So a script that it ends has changed nothing.
"""

from synapse_rendezvous.redis.layout import CURRENT, HOLDS, KEYS, QUOTAS, READ, STORE, TELL

GET = (
    KEYS
    + CURRENT
    + """
return {'ok', now, value, ended}
"""
)
"""Returns the value."""

CREATE = (
    KEYS
    + READ
    + QUOTAS
    + STORE
    + """
local tag, write, size, client, ttl, grace, max_sessions, max_total_bytes = unpack(ARGV, 2)
local max_client_sessions, crowded_sessions, crowded_client_sessions = unpack(ARGV, 10)
if not is_whole then
  redis.call('UNLINK', sessions, queue, totals)
  is_whole = true  -- as soon as this session is in it
end
sweep()  -- no fewer than one creation adds, so the queue does not grow with what has expired
local function fewer_than(most)
  return makes(function() return redis.call('HLEN', sessions) < tonumber(most) end)
end
if not fewer_than(max_sessions) then
  return {'full', now, 'max_sessions', ended}
end
local quota, most = 'per_client.max_sessions', max_client_sessions
if not fewer_than(crowded_sessions) then
  quota, most = 'per_client.crowded_sessions', crowded_client_sessions
end
for _, share in ipairs(shares(client)) do
  if not makes(function() return total(share[1]) < most * share[2] end) then
    return {'full', now, quota, ended}
  end
end
if not makes_room_for(tonumber(size), max_total_bytes) then
  return {'full', now, 'max_total_bytes', ended}
end
local expires = now + ttl
local head = store(tag, string.rep('.', 20), expires, 0, client, write)
redis.call('RPUSH', queue, id)
count(1, size, client)
-- By this key, because it is new whenever another one is.
if redis.call('PTTL', sessions) < ttl + grace then
  for _, key in ipairs(KEYS) do
    redis.call('PEXPIREAT', key, expires + grace)
  end
end
return {'ok', now, head, ended}
"""
)
"""Returns the value up to the type, or the quota that is met."""

REPLACE = (
    KEYS
    + CURRENT
    + READ
    + HOLDS
    + QUOTAS
    + STORE
    + TELL
    + """
local tag, write, size, max_total_bytes, max_updates, repeats_from_any, channel = unpack(ARGV, 2)
local if_match, if_none_match, unmodified_since = unpack(ARGV, 9)
if not holds(if_match, if_none_match, unmodified_since) then
  -- As Preconditions.repeat has it.
  if if_match ~= '-' and not string.find(if_match, session.tag, 1, true)
    and write == string.sub(value, #session.head + 1)
    and (repeats_from_any == '1' or string.find(if_match, session.previous, 1, true))
  then
    return {'repeated', now, session.head, ended}
  end
  return {'failed', now, value, ended}
end
if session.updates >= tonumber(max_updates) then
  return {'full', now, 'max_updates', ended}
end
local growth = size - session.size
if not makes_room_for(growth, max_total_bytes) then
  return {'full', now, 'max_total_bytes', ended}
end
local head = store(tag, session.tag, session.expires, session.updates + 1, session.client, write)
count_bytes(growth)
tell(channel)
return {'ok', now, head, ended}
"""
)
"""Returns the value up to the type; the whole of it if a precondition failed. `repeated` instead of `ok` if it was done
before."""

DELETE = (
    KEYS
    + CURRENT
    + READ
    + HOLDS
    + QUOTAS
    + TELL
    + """
local channel, if_match, if_none_match, unmodified_since = unpack(ARGV, 2)
if not holds(if_match, if_none_match, unmodified_since) then
  return {'failed', now, value, ended}
end
redis.call('HDEL', sessions, id)
count(-1, 0 - session.size, session.client)
tell(channel)
return {'ok', now, session.head, ended}
"""
)
"""Returns the value up to the type; the whole of it if a precondition failed."""

SWEEP = (
    KEYS
    + READ
    + QUOTAS
    + """
local _, is_more = sweep()
local more = is_more and 1 or 0
local clients = math.max(0, redis.call('HLEN', totals) - 1)  -- without the bytes
return {'ok', now, string.format('%d %d %d %d', redis.call('HLEN', sessions), total('bytes'), clients, more), ended}
"""
)
"""Returns what is held, as `HELD` says; it is given no id."""
