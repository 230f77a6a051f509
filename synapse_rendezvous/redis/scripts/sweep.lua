-- Returns how much is left, as USAGE in layout.py says; it is given no id.
local _, is_more = sweep()
local more = is_more and 1 or 0
local clients = math.max(0, redis.call('HLEN', totals) - 2)  -- without the bytes and the sessions
return {'ok', now, string.format('%d %d %d %d', total('sessions'), total('bytes'), clients, more), ended}
