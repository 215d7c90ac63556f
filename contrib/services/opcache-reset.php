<?php
// Asked by opcache-reset through FPM; nothing of it depends on what is asked.
$is_reset = function_exists('opcache_reset') && opcache_reset();
echo $is_reset ? "opcache is reset\n" : "opcache is off\n";
