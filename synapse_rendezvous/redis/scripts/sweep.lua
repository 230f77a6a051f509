-- Returns how much is left, as USAGE in layout.py says; it is given no id.
local _, is_more = sweep()
local more = is_more and 1 or 0
local clients = math.max(0, redis.call('HLEN', totals) - 1)  -- without the bytes
return {'ok', now, string.format('%d %d %d %d', redis.call('HLEN', sessions), total('bytes'), clients, more), ended}
