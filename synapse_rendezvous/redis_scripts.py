"""What runs inside Redis: a script for each operation of a store.

Every script is given these three keys and returns an array: `ok`, `gone`, `failed` or `full`; Redis' time in
milliseconds; a value, empty where there is none to tell; and the records that it took from the queue. Where Redis takes
no writes (out of memory, read-only), it refuses the first one, so a script that it ends has changed nothing.
"""

from synapse_rendezvous.redis_layout import CURRENT, KEYS, QUOTAS, REVISION, STORE, TELL

GET = (
    KEYS
    + CURRENT
    + """
if not value then
  return {'gone', now, '', ended}
end
return {'ok', now, value, ended}
"""
)
"""Returns the value."""

CREATE = (
    KEYS
    + CURRENT
    + QUOTAS
    + STORE
    + """
local tag, write, size, client, ttl, max_sessions, max_total_bytes = unpack(ARGV)
local max_client_sessions, crowded_sessions, crowded_client_sessions = unpack(ARGV, 8)
sweep()  -- more than one creation adds, so the queue does not grow with what has expired
local function fewer_than(most)
  return makes(function() return total('sessions') < tonumber(most) end)
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
expires = now + ttl
local length = redis.call('LLEN', queue)
if length == 0 then
  redis.call('DEL', totals)  -- whatever may have happened to either key, an empty queue has no totals
end
local head = store(tag, string.rep('.', 20), 0, total('left') + length, client, write)
redis.call('RPUSH', queue, record(size, 0, client))
count(1, size, client)
for _, key in ipairs({queue, totals}) do
  if redis.call('PTTL', key) < tonumber(ttl) then
    redis.call('PEXPIREAT', key, expires)
  end
end
return {'ok', now, head, ended}
"""
)
"""Returns the value up to the type, or the quota that is met."""

REPLACE = (
    KEYS
    + CURRENT
    + REVISION
    + QUOTAS
    + STORE
    + TELL
    + """
local new_tag, new_write, new_size, max_total_bytes, max_updates, repeats_from_any, channel = unpack(ARGV)
local if_match, if_none_match, unmodified_since = unpack(ARGV, 8)
local growth = new_size - size
if not holds(if_match, if_none_match, unmodified_since) then
  -- As Preconditions.repeat has it.
  if if_match ~= '-' and not string.find(if_match, tag, 1, true) and write == new_write
    and (repeats_from_any == '1' or string.find(if_match, previous, 1, true))
  then
    return {'repeated', now, string.sub(value, 1, client_end), ended}
  end
  return {'failed', now, value, ended}
end
if updates >= tonumber(max_updates) then
  return {'full', now, 'max_updates', ended}
end
if not makes_room_for(growth, max_total_bytes) then
  return {'full', now, 'max_total_bytes', ended}
end
local head = store(new_tag, tag, updates + 1, place, client, new_write)
if record_instead(place, record(size, updates, client), record(new_size, updates + 1, client)) then
  redis.call('HINCRBY', totals, 'bytes', growth)
end
tell(channel)
return {'ok', now, head, ended}
"""
)
"""Returns the value up to the type; the whole of it if a precondition failed. `repeated` instead of `ok` if it was done
before."""

DELETE = (
    KEYS
    + CURRENT
    + REVISION
    + QUOTAS
    + TELL
    + """
local channel, if_match, if_none_match, unmodified_since = unpack(ARGV)
if not holds(if_match, if_none_match, unmodified_since) then
  return {'failed', now, value, ended}
end
redis.call('DEL', session)
if record_instead(place, record(size, updates, client), '') then
  count(-1, 0 - size, client)
end
tell(channel)
return {'ok', now, string.sub(value, 1, client_end), ended}
"""
)
"""Returns the value up to the type; the whole of it if a precondition failed."""

SWEEP = (
    KEYS
    + QUOTAS
    + """
sweep()
local sessions, oldest = total('sessions'), redis.call('LINDEX', queue, 0)
local clients = redis.call('HLEN', totals) - redis.call('HEXISTS', totals, 'left') - 2  -- and sessions, and bytes
local over = oldest and is_over(oldest) and 1 or 0
return {'ok', now, string.format('%d %d %d %d', sessions, total('bytes'), math.max(0, clients), over), ended}
"""
)
"""Returns what is held, as `HELD` says."""
